"""`git-mirror sync`: one refresh, by the running service or here."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import click

from mirror.cli.control import asked
from mirror.cli.root import main
from mirror.cli.running import (
    CONFIG_OPTION,
    configure_logs,
    count,
    fail,
    keep_files_private,
    load,
    run,
    watch,
)
from mirror.config import Settings
from mirror.once import sync_once
from mirror.places import DataDirectory, DataDirectoryInUse
from mirror.progress import Display, display_for_stderr
from mirror.refresh.mirror import Progress


@main.command()
@CONFIG_OPTION
@click.argument("repository")
@click.option(
    "--accept-deletions",
    is_flag=True,
    help="Refs that the upstream no longer lists were deleted, however many they are.",
)
def sync(config_path: Path | None, repository: str, *, accept_deletions: bool) -> None:
    """Refresh REPOSITORY from its upstream now, and wait for it.

    Asks the running service if there is one; otherwise does it here.
    """
    settings = load(config_path)
    name = repository.strip("/").removesuffix(".git")
    if settings.find(name) is None:
        known = ", ".join(list(settings.repositories)[:10])
        fail(f"no repository {name!r} in {settings.source}; it has {known}")
    configure_logs(settings.log)
    keep_files_private()
    display = display_for_stderr()
    try:
        summary = run(_sync(settings, name, display, accept_deletions))
    finally:
        display.close()
    click.echo(summary)


async def _sync(settings: Settings, name: str, display: Display, accepts: bool) -> str:  # noqa: FBT001
    try:
        mirror = await sync_once(settings, name, watch=watch(display), accepts_deletions=accepts)
    except DataDirectoryInUse:
        return await _sync_by_service(
            settings, name, display, "?accept_deletions" if accepts else ""
        )
    refs = len(mirror.snapshot.refs) if mirror.snapshot else 0
    kept = len(mirror.vanishing.since) if mirror.vanishing else 0
    return _summary(name, refs, kept)


def _summary(name: str, refs: int, kept: int) -> str:
    summary = f"{name}: up to date, {count(refs, 'ref')}"
    if kept:
        summary += f", {kept} of which vanished upstream (--accept-deletions takes that as it is)"
    return summary


async def _sync_by_service(settings: Settings, name: str, display: Display, query: str) -> str:
    socket = DataDirectory(settings.data_dir).control
    try:
        async for event in _control_events(socket, f"/sync/{name}{query}"):
            if progress := event.get("progress"):
                display.show(name, Progress(**progress))
            elif event.get("outcome") == "ok":
                repository = event["repository"]
                kept = (repository["vanished"] or {}).get("refs", 0)
                return _summary(name, repository["refs"], kept)
            else:
                fail(f"{name}: {event.get('error', 'no reason given')}")
    except aiohttp.ClientError as error:
        fail(f"the running service can't be asked at {socket}: {error}")
    return fail(f"{name}: the service ended before the refresh did")


async def _control_events(socket: Path, path: str) -> AsyncIterator[dict[str, Any]]:
    async with asked(socket, path) as response:
        async for line in response.content:
            yield json.loads(line)
