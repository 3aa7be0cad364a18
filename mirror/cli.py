"""The command line: `git-mirror COMMAND`, also as `git mirror COMMAND`.

Exit codes: 0 all well; 1 something is wrong and said so; 2 a mistake on the command line.
"""

import asyncio
import gc
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import aiohttp
import click
import structlog
import uvloop
from rich.console import Console
from rich.table import Table

from mirror import __version__, config, logs
from mirror.config import LogFormat, LogSettings, Settings
from mirror.errors import MirrorError
from mirror.places import DataDirectory, DataDirectoryInUse
from mirror.progress import Display, display_for_stderr
from mirror.refresh.mirror import Mirror, Progress
from mirror.service import Service, probe, sync_once

T = TypeVar("T")

logger = structlog.stdlib.get_logger()

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


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="git-mirror")
def main() -> None:
    """A Git mirror and low-latency fetch cache for GitOps.

    Keeps bare mirrors of GitHub and GitLab repositories near your clusters, serves them to Argo CD,
    Flux and every other Git client over smart HTTP, and learns of pushes by webhook.

    Try it out with `git-mirror demo`. Then write a configuration, `git-mirror check` it, and run
    `git-mirror serve`.
    """


@main.command()
@CONFIG_OPTION
def serve(config_path: Path | None) -> None:
    """Run the mirror.

    Ends cleanly on SIGTERM and Ctrl-C: answers under way are finished first.
    """
    settings = _load(config_path)
    _configure_logs(settings.log)
    display = display_for_stderr()
    try:
        _run(_serve(settings, display))
    finally:
        display.close()


async def _serve(settings: Settings, display: Display) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with Service(settings, watch=_watch(display)) as service:
        # What is here now stays: the collector need not look at it again, which for 1,000
        # repositories takes 40 to 80 ms each time, with the event loop standing still.
        gc.collect()
        gc.freeze()
        stopping = asyncio.create_task(stop.wait())
        broken = asyncio.create_task(service.wait())
        await asyncio.wait((stopping, broken), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if broken.done():
            broken.result()
        broken.cancel()
        logger.info("stopping")


@main.command()
@CONFIG_OPTION
@click.option("--online", is_flag=True, help="Reach every upstream as well.")
def check(config_path: Path | None, *, online: bool) -> None:
    """Check the configuration, its files and, if asked to, its upstreams."""
    settings = _load(config_path)
    problems = config.check_files(settings)
    if online:
        for name, problem in _run(probe(settings)).items():
            click.echo(f"{'ok     ' if problem is None else 'PROBLEM'}  {name}")
            if problem is not None:
                problems.append(f"repositories.{name}: {problem}")
    for problem in problems:
        click.echo(problem, err=True)
    if problems:
        sys.exit(1)
    click.echo(f"{settings.source}: ok, {_count(len(settings.repositories), 'repository')}")


@main.command()
@CONFIG_OPTION
@click.argument("repository")
def sync(config_path: Path | None, repository: str) -> None:
    """Refresh REPOSITORY from its upstream now, and wait for it.

    Asks the running service if there is one; otherwise does it here.
    """
    settings = _load(config_path)
    name = repository.strip("/").removesuffix(".git")
    if name not in settings.repositories:
        known = ", ".join(list(settings.repositories)[:10])
        _fail(f"no repository {name!r} in {settings.source}; it has {known}")
    _configure_logs(settings.log)
    display = display_for_stderr()
    try:
        summary = _run(_sync(settings, name, display))
    finally:
        display.close()
    click.echo(summary)


async def _sync(settings: Settings, name: str, display: Display) -> str:
    try:
        mirror = await sync_once(settings, name, watch=_watch(display))
    except DataDirectoryInUse:
        return await _sync_by_service(settings, name, display)
    refs = len(mirror.snapshot.refs) if mirror.snapshot else 0
    return f"{name}: up to date, {_count(refs, 'ref')}"


async def _sync_by_service(settings: Settings, name: str, display: Display) -> str:
    socket = DataDirectory(settings.data_dir).control
    try:
        async for event in _control_events(socket, f"/sync/{name}"):
            if progress := event.get("progress"):
                display.show(name, Progress(**progress))
            elif event.get("outcome") == "ok":
                return f"{name}: up to date, {_count(event['repository']['refs'], 'ref')}"
            else:
                _fail(f"{name}: {event.get('error', 'no reason given')}")
    except aiohttp.ClientError as error:
        _fail(f"the running service can't be asked at {socket}: {error}")
    return _fail(f"{name}: the service ended before the refresh did")


async def _control_events(socket: Path, path: str) -> AsyncIterator[dict[str, Any]]:
    connector = aiohttp.UnixConnector(str(socket))
    timeout = aiohttp.ClientTimeout(total=None)
    async with (
        aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
        session.post(f"http://control{path}") as response,
    ):
        async for line in response.content:
            yield json.loads(line)


@main.command()
@CONFIG_OPTION
@click.option("--url", help="The service's address. Default: from the configuration.")
@click.option("--json", "as_json", is_flag=True, help="The service's own JSON.")
def status(config_path: Path | None, url: str | None, *, as_json: bool) -> None:
    """Show how the running service is doing. Exit code 1 when a repository is failing or stale."""
    if url is None:
        listen = _load(config_path).server.listen
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen.host, listen.host)  # noqa: S104
        url = f"http://[{host}]:{listen.port}" if ":" in host else f"http://{host}:{listen.port}"
    state = _run(_get_json(f"{url.rstrip('/')}/status.json"))
    if as_json:
        click.echo(json.dumps(state, indent=2))
    else:
        Console().print(_status_table(state))
    healthy = all(one["state"] == "fresh" for one in state["repositories"].values())
    sys.exit(0 if healthy else 1)


async def _get_json(url: str) -> dict[str, Any]:
    timeout = aiohttp.ClientTimeout(total=10)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(url) as response,
        ):
            response.raise_for_status()
            found: dict[str, Any] = await response.json()
            return found
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        _fail(f"no git-mirror answers at {url}: {error}; is the service running?")


def _status_table(state: dict[str, Any]) -> Table:
    engine = state["engine"]
    table = Table(
        title=f"git-mirror {state['software']}, packs by {engine['name']} {engine['version']}",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for heading in ("repository", "state", "age", "refs", "head", "remark"):
        table.add_column(heading, overflow="fold")
    colours = {"fresh": "green", "stale": "yellow", "failing": "red", "cloning": "cyan"}
    for name, one in state["repositories"].items():
        age = one["age_seconds"]
        remark = one["last_error"] if one["state"] == "failing" else None
        if one["moved_to"]:
            remark = f"upstream moved to {one['moved_to']}"
        table.add_row(
            name,
            f"[{colours.get(one['state'], 'white')}]{one['state']}[/]",
            "-" if age is None else f"{age:.0f} s",
            str(one["refs"]),
            (one["head_commit"] or "-")[:12],
            _plain(remark or ""),
        )
    return table


def _plain(text: str) -> str:
    """Keep what an upstream said from being read as markup."""
    return text.replace("[", r"\[")


@main.group("config")
def config_group() -> None:
    """The configuration's own description."""


@config_group.command()
def schema() -> None:
    """Print the JSON Schema of the configuration, for editors."""
    click.echo(json.dumps(config.json_schema(), indent=2))


@config_group.command()
def reference() -> None:
    """Print the configuration reference as Markdown (docs/configuration.md)."""
    click.echo(config.reference_markdown(), nl=False)


@main.command()
@click.option("--keep", is_flag=True, help="Leave everything running afterwards.")
def demo(*, keep: bool) -> None:
    """Play a whole deployment on this machine, with real parts.

    An upstream behind a 100 ms round trip, the mirror in front of it, a push as CI would make it,
    its webhook, and the real git client: what a poll and a fetch cost directly and through the
    mirror. Needs git; touches nothing outside a temporary directory.
    """
    from mirror.demo.scenario import play  # noqa: PLC0415 - only this command pays for it

    logs.configure(json=False, level="warning")
    if not _run(play(keep=keep)):
        sys.exit(1)


@main.command(hidden=True)
@click.option("--channel", type=int, required=True, help="The descriptor of the channel.")
def worker(channel: int) -> None:
    """Serve as a worker process of `git-mirror serve`, which starts it."""
    from mirror.workers.worker import Worker  # noqa: PLC0415 - only this command pays for it

    _configure_logs(LogSettings())  # until its setup says otherwise

    async def work() -> None:
        if not await Worker(_configure_logs).run(socket.socket(fileno=channel)):
            os._exit(1)  # at once, whatever its threads are at

    _run(work())


def _load(path: Path | None) -> Settings:
    try:
        return config.load(path or config.environment().config_path)
    except MirrorError as error:
        _fail(str(error))


def _configure_logs(settings: LogSettings, worker: int | None = None) -> None:
    as_json = settings.format is LogFormat.JSON or (
        settings.format is LogFormat.AUTO and not sys.stderr.isatty()
    )
    logs.configure(json=as_json, level=settings.level.value, worker=worker)


def _watch(display: Display) -> Any:
    def watch(mirror: Mirror) -> None:
        display.show(mirror.name, mirror.progress)

    return watch


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end; what goes wrong is told in one line."""
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        return uvloop.run(work)
    except MirrorError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        with suppress(BrokenPipeError):
            click.echo(err=True)
        sys.exit(130)


def _fail(message: str) -> NoReturn:
    click.echo(f"git-mirror: {message}", err=True)
    sys.exit(1)


def _count(number: int, thing: str) -> str:
    plural = thing[:-1] + "ies" if thing.endswith("y") else thing + "s"
    return f"{number} {thing if number == 1 else plural}"
