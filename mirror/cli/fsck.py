"""`git-mirror fsck`: whether what is on disk is what was written. Changes nothing."""

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from mirror.access.tokens import read_tokens
from mirror.cli.root import main
from mirror.cli.running import CONFIG_OPTION, count, fail, load
from mirror.config import Settings
from mirror.errors import LocalError
from mirror.places import DataDirectory
from mirror.repository.bare import BareRepository


@main.command()
@CONFIG_OPTION
@click.argument("names", nargs=-1, metavar="[NAME]...")
def fsck(config_path: Path | None, names: tuple[str, ...]) -> None:
    """Read the mirrors and compare all files with their checksums; by default every mirror.

    Also beside a running service, which does the same by and by, and mends what it finds: this
    command changes nothing. Exit code 1 and a line for each file that is damaged.
    """
    settings = load(config_path)
    places = DataDirectory(settings.data_dir)
    wanted = [name.strip("/").removesuffix(".git") for name in names]
    found = wanted or sorted(_on_disk(settings, places))
    damaged = 0
    for name in found:
        if settings.find(name) is None and name not in settings.repositories:
            fail(f"no repository {name!r} in {settings.source}")
        path = places.repository(name)
        if not path.exists():
            click.echo(f"-        {name}: not mirrored yet")
            continue
        problems = list(_problems(path))
        damaged += len(problems)
        click.echo(f"{'DAMAGED ' if problems else 'ok      '} {name}")
        for problem in problems:
            click.echo(f"  {problem}", err=True)
    if not wanted:
        try:
            read_tokens(places.tokens)
        except LocalError as error:
            damaged += 1
            click.echo(f"  {error}", err=True)
    if damaged:
        click.echo(f"{count(damaged, 'problem')}", err=True)
        sys.exit(1)


def _on_disk(settings: Settings, places: DataDirectory) -> Iterator[str]:
    """Yield the mirrors that are there, those below `upstreams` too, and those that should be."""
    yield from settings.repositories
    for head in places.repositories.rglob("*.git/HEAD"):
        name = head.parent.relative_to(places.repositories).as_posix().removesuffix(".git")
        if name not in settings.repositories and settings.find(name) is not None:
            yield name


def _problems(path: Path) -> Iterator[str]:
    """Yield what is wrong with one mirror."""
    try:
        repository = BareRepository.open_beside(path)
    except LocalError as error:
        yield str(error)
        return
    try:
        yield from (f"{one.kind}: {one}" for one in repository.check(since=0.0))
        try:
            refs = repository.read_refs().refs.values()
        except LocalError:
            return  # said already
        for ref in refs:
            if not repository.source.contains(ref.oid):
                yield f"objects: {ref.name.decode('utf-8', 'backslashreplace')} is missing"
    finally:
        repository.close()
