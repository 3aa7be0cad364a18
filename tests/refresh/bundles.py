"""A service that makes bundles when a test says so, and a client that takes them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from mirror.demo.forge import HttpBackend
from mirror.wire.bundles import Bundle
from tests.git_client import GitClient, Upstream
from tests.mirror_service import NAME, MirrorService, mirroring

BUNDLED = "bundle_interval: 300d\nbundle_bytes_min: 0"
LIST = f"/{NAME}/bundles/list"


@asynccontextmanager
async def bundling(
    forge: HttpBackend, place: Path, *, engine: str = "git", sections: str = ""
) -> AsyncIterator[MirrorService]:
    """Run the service with its first bundles made."""
    async with mirroring(
        forge, place, engine=engine, defaults=BUNDLED, sections=sections
    ) as running:
        await bundled(running)
        yield running


async def bundled(mirror: MirrorService) -> None:
    """Wait until bundles are offered."""
    await mirror.until(lambda one: one.bundles is not None)


def offered(mirror: MirrorService) -> tuple[Bundle, ...]:
    listed = mirror.mirror().bundles
    return listed.bundles if listed is not None else ()


def directory(place: Path) -> Path:
    return place / "data" / "bundles" / NAME.replace("/", "%2F")


def files(place: Path) -> set[str]:
    found = directory(place)
    return {file.name for file in found.iterdir()} if found.exists() else set()


async def remake(mirror: MirrorService, *, name: str = NAME) -> bool:
    """Do what the schedule does when the time has come."""
    assert mirror.service.bundler is not None
    return await mirror.service.bundler.bundle(name)


async def push(mirror: MirrorService, upstream: Upstream, *refs: str) -> None:
    for ref in refs or ("refs/heads/main",):
        await mirror.announce(upstream, ref)
    await mirror.caught_up(upstream)


async def unbundled(mirror: MirrorService, place: Path, client: GitClient) -> Path:
    """Take all bundles as a client does that has nothing, and return its repository."""
    clone = client.workdir / f"unbundled-{len(list(client.workdir.iterdir()))}"
    await client.run("init", "--quiet", "--bare", str(clone))
    for bundle in offered(mirror):
        file = str(directory(place) / bundle.name)
        await client.run("bundle", "verify", "--quiet", file, cwd=clone)
        await client.run("fetch", "--quiet", file, "+refs/*:refs/*", cwd=clone)
    await client.fsck(clone)
    return clone
