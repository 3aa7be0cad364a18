"""`git-mirror status`: the running service's own account of itself.

Asked for over the control socket, which needs no permission but that of its file; where this user
may not open that, over the service's address like anybody.
"""

import json
import sys
from pathlib import Path
from typing import Any, Final

import aiohttp
import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mirror import config
from mirror.cli.root import main
from mirror.cli.running import CONFIG_OPTION, count, fail, load, run, service_url
from mirror.doctor.service import STATE_ERRORS, get_state
from mirror.errors import ConfigError
from mirror.logs import legible
from mirror.places import DataDirectory

EXPIRY_DAYS_SHOWN: Final = 30


@main.command()
@CONFIG_OPTION
@click.option("--url", help="The service's address. Default: from the configuration.")
@click.option("--json", "as_json", is_flag=True, help="The service's own JSON.")
def status(config_path: Path | None, url: str | None, *, as_json: bool) -> None:
    """Show how the running service is doing.

    Exit code 1 when a repository is failing or stale, or a receiver does not take its events.
    """
    state = run(_state(url.rstrip("/")) if url else _own_state(config_path))
    relays = state["relays"]
    if as_json:
        click.echo(json.dumps(state, indent=2))
    else:
        Console().print(_status_table(state))
        if (remark := _disk_remark(state.get("disk"))) is not None:
            Console().print(f"[red]{remark}[/]")
        for line in _configuration_lines(state.get("configuration")):
            click.echo(line)
        if relays:
            Console().print(_relays_table(relays))
    healthy = all(map(_is_well, state["repositories"].values()))
    healthy = healthy and all(one["last_error"] is None for one in relays.values())
    sys.exit(0 if healthy else 1)


async def _own_state(config_path: Path | None) -> dict[str, Any]:
    try:
        data_dir = config.find_data_dir(config_path or config.environment().config_path)
        connector = aiohttp.UnixConnector(str(DataDirectory(data_dir).control))
        return await get_state("http://control", connector)
    except (*STATE_ERRORS, ConfigError):
        return await _state(service_url(load(config_path)))


async def _state(url: str) -> dict[str, Any]:
    try:
        return await get_state(url)
    except STATE_ERRORS as error:
        fail(f"no git-mirror answers at {url}: {error}; is the service running?")


def _is_well(repository: dict[str, Any]) -> bool:
    """Tell whether all is well; a first clone that somebody asked for just now is."""
    is_asked_for = repository.get("pull_through") is not None
    if repository.get("vanished"):
        return False
    return repository["state"] in ({"fresh", "cloning"} if is_asked_for else {"fresh"})


def _disk_remark(disk: dict[str, Any] | None) -> str | None:
    """Return what is wrong with the service's disk."""
    if disk is None:
        return None
    if disk["is_read_only"]:
        return "the disk is mounted read-only: nothing new is mirrored"
    if disk["is_short"]:
        free, kept = (f"{disk[key] / 2**20:.0f} MiB" for key in ("free_bytes", "reserve_bytes"))
        return f"the disk is short: {free} free, and {kept} are to be kept for refreshes"
    return None


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
        if remark is not None and (pause := one.get("retry_after_seconds")):
            remark += f"; asked again in {pause} s"
        if one["moved_to"]:
            remark = f"upstream moved to {one['moved_to']}"
        elif remark is None and (vanished := one.get("vanished")):
            remark = (
                f"{count(vanished['refs'], 'ref')} vanished upstream, served on; if deleted:"
                f" git-mirror sync {name} --accept-deletions"
            )
        elif remark is None:
            remark = _expiry(one["credentials"])
        table.add_row(
            _plain(name),
            f"[{colours.get(one['state'], 'white')}]{one['state']}[/]",
            "-" if age is None else f"{age:.0f} s",
            str(one["refs"]),
            (one["head_commit"] or "-")[:12],
            _plain(remark or ""),
        )
    return table


def _relays_table(relays: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("receiver", "type", "pending", "oldest", "last delivery", "remark"):
        table.add_column(heading, overflow="fold")
    for name, one in relays.items():
        oldest = one["oldest_pending_seconds"]
        table.add_row(
            name,
            one["type"],
            f"[{'yellow' if one['pending'] else 'green'}]{one['pending']}[/]",
            f"{oldest:.0f} s" if one["pending"] else "-",
            one["last_delivery_at"] or "-",
            _plain(one["last_error"] or ""),
        )
    return table


def _configuration_lines(configuration: dict[str, Any] | None) -> list[str]:
    """Return what an operator has to know of the configuration file."""
    if configuration is None:
        return []
    lines = []
    if configuration["refused_at"] is not None:
        lines.append(
            f"{configuration['source']} was refused at {configuration['refused_at']}; the service"
            " goes on by the one before:"
        )
        lines += [f"  {problem}" for problem in configuration["problems"]]
    if configuration["restart_needed"]:
        lines.append(f"restart to apply: {', '.join(configuration['restart_needed'])}")
    return lines


def _expiry(credentials: dict[str, Any] | None) -> str | None:
    """Return a warning while there is time to make new credentials."""
    if credentials is None or (days := credentials["days_left"]) is None:
        return None
    if days > EXPIRY_DAYS_SHOWN:
        return None
    when = f"end in {count(round(days), 'day')}" if days > 0 else "have ended"
    return f"the credentials {when}: {credentials['name']}"


def _plain(text: str) -> str:
    """Keep what an upstream said from being read as markup, or by the terminal."""
    return escape(legible(text))
