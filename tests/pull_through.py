"""A service in front of a forge all of which stands below one path of it."""

import textwrap
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from mirror.demo.forge import HttpBackend
from mirror.pulling import PullThrough
from tests.mirror_service import NAME, MirrorService, configuration, refs_of, serving
from tests.workers.connections import Connection, connect

AT: Final = "code"
"""The path that stands for the forge."""

PULLED: Final = f"{AT}/{NAME}"
"""The repository `upstream`, as readers name it here."""

OTHER: Final = f"{AT}/acme/other"

ADMITTED: Final = "repositories: ['**', '!acme/secret-*']"


def pulling_configuration(
    forge: HttpBackend,
    directory: Path,
    *,
    source: str | None = None,
    place: str = "",
    limits: str = "",
    **more: Any,
) -> Path:
    """Write a configuration with one place, the forge, and return it.

    Args:
        forge: Where the repositories are.
        directory: Takes the file and the data.
        source: The place's `from`, if it is not the forge's own URL.
        place: More keys of the place.
        limits: Keys of `limits`, in flow style.
        more: See `configuration`.
    """
    keys = textwrap.indent(textwrap.dedent(place).strip(), "    ")
    sections = (
        f"upstreams:\n  - at: /{AT}\n    from: {source or forge.url}\n    forge: github\n"
        f"    {ADMITTED}\n{keys}\nlimits: {{{limits}}}\n"
    )
    more = {"names": (), **more}
    return configuration(forge, directory, sections=sections, **more)


@asynccontextmanager
async def pulling(forge: HttpBackend, directory: Path, **more: Any) -> AsyncIterator[MirrorService]:
    """Run the service with such a configuration."""
    async with serving(pulling_configuration(forge, directory, **more), forge) as running:
        yield running


def puller(mirror: MirrorService) -> PullThrough:
    """What keeps the mirrors below the place."""
    assert mirror.service.pulling is not None
    return mirror.service.pulling


def later(mirror: MirrorService, seconds: float) -> None:
    """Let it be so many seconds later for what decides which mirrors go and come."""
    for one in (puller(mirror), puller(mirror).tidier):
        one._clock = lambda: time.monotonic() + seconds


def mirrored_names(mirror: MirrorService) -> list[str]:
    """Return the repositories that are here."""
    return [one.mirror.name for one in mirror.service.registry]


def mirrors_on_disk(directory: Path) -> list[str]:
    """Return what is below `data_dir` of mirrors, whole or half, by place."""
    data = directory / "data"
    return sorted(
        str(path.relative_to(data))
        for place in ("repositories", "staging", "trash", "set-aside")
        for path in (data / place).rglob("*.git")
    )


def clones_asked(forge: HttpBackend, name: str = NAME) -> int:
    """Return how many packs of a repository the upstream was asked for."""
    return sum(one.is_fetch() and one.path.startswith(f"/{name}.git") for one in forge.requests)


async def read(mirror: MirrorService, name: str = PULLED) -> dict[str, str]:
    """Read a repository, which is mirrored if need be, and return its refs."""
    answer = await mirror.info_refs(name)
    assert answer.status == 200, answer
    return refs_of(mirror.mirror(name))


@asynccontextmanager
async def closing_connection(mirror: MirrorService) -> AsyncIterator[Connection]:
    connection = await connect(mirror.service.url)
    try:
        yield connection
    finally:
        await connection.close()
