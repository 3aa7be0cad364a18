"""`git-mirror upgrade`: have the installed program take over from the running service."""

from pathlib import Path
from typing import Any

import aiohttp
import click

from mirror.cli.control import asked
from mirror.cli.root import main
from mirror.cli.running import CONFIG_OPTION, fail, load, run
from mirror.places import DataDirectory


@main.command()
@CONFIG_OPTION
def upgrade(config_path: Path | None) -> None:
    """Have the installed program, with the configuration as it is now, take over.

    The running service starts it, hands it the listening sockets and the data directory, and ends
    when the answers it is giving are done: no request is dropped. Where the new one does not come
    to serve, the old one goes on, and this ends with exit code 1.
    """
    socket = DataDirectory(load(config_path).data_dir).control
    answer = run(_upgrade(socket))
    if answer.get("outcome") != "ok":
        fail(f"the running service goes on: {answer.get('error', 'no reason given')}")
    click.echo(f"process {answer['process']} serves now")


async def _upgrade(socket: Path) -> dict[str, Any]:
    try:
        async with asked(socket, "/upgrade") as response:
            answer: dict[str, Any] = await response.json()
            return answer
    except aiohttp.ClientError as error:
        fail(f"the running service can't be asked at {socket}: {error}")
