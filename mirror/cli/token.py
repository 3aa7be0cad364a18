"""`git-mirror token`: make, list and revoke the tokens that readers show."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from mirror.access.tokens import Token, create_token, read_tokens, revoke_token
from mirror.cli.root import main
from mirror.cli.running import CONFIG_OPTION, fail, load
from mirror.config import Settings, is_named, parse_duration, read_repositories_pattern
from mirror.errors import LocalError
from mirror.places import DataDirectory


@main.group()
def token() -> None:
    """Tokens for readers, where `access` has `readers`.

    A token is shown once, when it is made; only its hash is kept. A reader sends it as password of
    HTTP Basic, with any user name, or as Bearer token. The running service knows of a change within
    a second.
    """


@token.command()
@CONFIG_OPTION
@click.argument("name")
@click.option(
    "--repositories",
    "patterns",
    multiple=True,
    metavar="PATTERN",
    help="What the reader may see: names, `*` for anything, `!` to take away. Default: all.",
)
@click.option("--expires", metavar="DURATION", help="How long it is good, like 90d. Default: ever.")
def create(
    config_path: Path | None, name: str, patterns: tuple[str, ...], expires: str | None
) -> None:
    """Make a token for the reader NAME, and print it; nobody can print it again."""
    settings = load(config_path)
    try:
        lasts = parse_duration(expires) if expires is not None else None
        for pattern in patterns:
            read_repositories_pattern(pattern)
    except ValueError as error:
        fail(str(error))
    # Below `upstreams` any name may come.
    is_known = any(is_named(one, patterns) for one in settings.repositories)
    if patterns and not settings.upstreams and not is_known:
        fail(f"{', '.join(patterns)} names no repository in {settings.source}")
    try:
        secret = create_token(
            _file(settings),
            name,
            repositories=patterns or ("*",),
            expires_at=None if lasts is None else time.time() + lasts,
        )
    except LocalError as error:
        fail(str(error))
    click.echo(secret)


@token.command("list")
@CONFIG_OPTION
@click.option("--json", "as_json", is_flag=True, help="As JSON, for machines.")
def list_(config_path: Path | None, *, as_json: bool) -> None:
    """List the tokens, without what is secret of them."""
    tokens = _read(load(config_path))
    if as_json:
        click.echo(json.dumps([_described(one) for one in tokens], indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "repositories", "made", "good until"):
        table.add_column(heading, overflow="fold")
    for one in tokens:
        until = "revoked" if one.expires_at is None else _iso(one.expires_at)
        if one.is_expired(time.time()):
            until = f"[red]expired {until}[/]"
        table.add_row(one.name, " ".join(one.repositories), _iso(one.created_at), until)
    Console().print(table)


@token.command()
@CONFIG_OPTION
@click.argument("name")
def revoke(config_path: Path | None, name: str) -> None:
    """Take the token of the reader NAME away."""
    try:
        revoke_token(_file(load(config_path)), name)
    except LocalError as error:
        fail(str(error))
    click.echo(f"{name}: revoked")


def _file(settings: Settings) -> Path:
    return DataDirectory(settings.data_dir).tokens


def _read(settings: Settings) -> list[Token]:
    try:
        return read_tokens(_file(settings))
    except LocalError as error:
        fail(str(error))


def _described(one: Token) -> dict[str, object]:
    return {
        "name": one.name,
        "repositories": list(one.repositories),
        "created_at": _iso(one.created_at),
        "expires_at": None if one.expires_at is None else _iso(one.expires_at),
    }


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
