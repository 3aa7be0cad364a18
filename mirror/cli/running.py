"""What every command needs: the configuration, logs, one way to run and one to fail."""

import os
import sys
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import click
import uvloop

from mirror import config, logs
from mirror.cli.scheduling import take_short_slices
from mirror.config import ListenAddress, LogFormat, LogSettings, Settings
from mirror.errors import MirrorError
from mirror.mirroring import Watch
from mirror.progress import Display
from mirror.refresh.mirror import Mirror

T = TypeVar("T")

SWITCH_SECONDS: Final = 0.0005
"""How long a thread may keep the event loop from running. With Python's own 5 ms, an echo beside
one busy thread takes 5.2 ms at p99; with this 0.7 ms, and the thread gets as much done."""

CONFIG_OPTION = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The configuration. Default: $GIT_MIRROR_CONFIG, or /etc/git-mirror/mirror.yaml.",
)


def load(path: Path | None) -> Settings:
    """Return the configuration in `path`, by default in the environment's; its mistakes end us."""
    try:
        return config.load(path or config.environment().config_path)
    except MirrorError as error:
        fail(str(error))


def configure_logs(settings: LogSettings, worker: int | None = None) -> None:
    """Log as the configuration says; `auto` is for people on a terminal, JSON elsewhere."""
    as_json = settings.format is LogFormat.JSON or (
        settings.format is LogFormat.AUTO and not sys.stderr.isatty()
    )
    logs.configure(json=as_json, level=settings.level.value, worker=worker)


def keep_files_private() -> None:
    """See to it that no file or socket that is made from here on is for everybody.

    Whatever the umask we were started with: private repositories are among the files.
    """
    os.umask(os.umask(0o077) | 0o027)


def watch(display: Display) -> Watch:
    """Return what shows every mirror's progress on `display`."""

    def watch(mirror: Mirror) -> None:
        display.show(mirror.name, mirror.progress)

    return watch


def service_url(settings: Settings) -> str:
    """Return where the running service answers, seen from this machine."""
    listen = settings.server.listen
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen.host, listen.host)  # noqa: S104
    scheme = "http" if settings.tls is None else "https"
    return f"{scheme}://{ListenAddress(host, listen.port)}"


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end; what goes wrong is told in one line."""
    sys.setswitchinterval(SWITCH_SECONDS)
    take_short_slices()
    try:
        return uvloop.run(work)
    except MirrorError as error:
        fail(str(error))
    except KeyboardInterrupt:
        with suppress(BrokenPipeError):
            click.echo(err=True)
        sys.exit(130)


def fail(message: str) -> NoReturn:
    """End with exit code 1 and a line that says why; a peer may have had a part in its words."""
    lines = map(logs.legible, message.split("\n"))
    click.echo("git-mirror: " + "\n".join(lines), err=True)
    sys.exit(1)


def count(number: int, thing: str) -> str:
    """Return a number with its thing, in the plural where it must be."""
    ends_in_y = thing.endswith("y") and thing[-2:-1] not in "aeiou"
    plural = thing[:-1] + "ies" if ends_in_y else thing + "s"
    return f"{number} {thing if number == 1 else plural}"
