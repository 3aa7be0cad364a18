"""`git-mirror reload`: the running service reads its configuration again."""

import asyncio
import sys
import time
from pathlib import Path
from typing import Any, Final

import aiohttp
import click

from mirror import config
from mirror.cli.control import asked
from mirror.cli.root import main
from mirror.cli.running import CONFIG_OPTION, fail, run
from mirror.errors import ConfigError
from mirror.places import DataDirectory

LISTENING_SECONDS_MAX: Final = 30.0
"""A process that has become the service listens at the control socket a moment later."""

AGAIN_SECONDS: Final = 0.1


@main.command()
@CONFIG_OPTION
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="The running service's data directory. Default: from the configuration.",
)
def reload(config_path: Path | None, data_dir: Path | None) -> None:
    """Have the running service read its configuration again, and wait until it applies.

    Exit code 1 when the file has mistakes, which are printed: then the service goes on as before.
    """
    file = config_path or config.environment().config_path
    control = DataDirectory(data_dir or _data_dir(file)).control
    answer = run(_ask_whoever_serves(control))
    if answer["outcome"] == "error":
        fail(f"the running service does not reload now: {answer['error']}")
    for line in answer["warnings"]:
        click.echo(f"warning: {line}", err=True)
    for line in answer["problems"]:
        click.echo(line, err=True)
    if answer["restart"]:
        click.echo(f"restart to apply: {', '.join(answer['restart'])}", err=True)
    outcome = answer["outcome"]
    done = f", {answer['done']}" if answer["done"] else ""
    click.echo(f"{answer['source']}: {outcome}{done}", err=bool(answer["problems"]))
    sys.exit(1 if answer["problems"] else 0)


def _data_dir(file: Path) -> Path:
    try:
        return config.find_data_dir(file)
    except ConfigError as error:
        return fail(f"{error}\nThe running service goes on as before.")


async def _ask_whoever_serves(control: Path) -> dict[str, Any]:
    """Ask the service; where another process takes over from it, that one."""
    give_up_at: float | None = None  # once the one that was asked has handed over
    while True:
        try:
            answer = await _ask(control)
        except (OSError, aiohttp.ClientError) as error:
            if give_up_at is None or time.monotonic() > give_up_at:
                fail(
                    f"the running service can't be asked at {control}: {error}; name its --data-dir"
                )
        else:
            if not answer.get("ask_again"):
                return answer
            if give_up_at is None:
                give_up_at = time.monotonic() + LISTENING_SECONDS_MAX
            elif time.monotonic() > give_up_at:
                return answer
        await asyncio.sleep(AGAIN_SECONDS)


async def _ask(control: Path) -> dict[str, Any]:
    async with asked(control, "/reload") as response:
        answer: dict[str, Any] = await response.json()
        return answer
