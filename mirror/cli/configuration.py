"""`git-mirror check` and `git-mirror config`: the configuration, and the description of it."""

import json
import sys
from pathlib import Path

import click

from mirror import config
from mirror.cli.root import main
from mirror.cli.running import CONFIG_OPTION, count, load, run
from mirror.errors import MirrorError
from mirror.layout import check_version
from mirror.logs import legible
from mirror.once import probe, probe_relays


@main.command()
@CONFIG_OPTION
@click.option("--online", is_flag=True, help="Reach every upstream and receiver as well.")
def check(config_path: Path | None, *, online: bool) -> None:
    """Check the configuration, its files and, if asked to, its upstreams and receivers."""
    settings = load(config_path)
    problems = config.check_files(settings)
    try:
        check_version(settings.data_dir)
    except MirrorError as error:
        problems.append(f"data_dir: {error}")
    if online:
        found = {f"repositories.{name}": one for name, one in run(probe(settings)).items()}
        told = run(probe_relays(settings))
        found |= {f"relays.{name}": one for name, one in told.items()}
        for key, problem in found.items():
            name = key.removeprefix("repositories.")
            click.echo(f"{'ok     ' if problem is None else 'PROBLEM'}  {name}")
            if problem is not None:
                problems.append(f"{key}: {problem}")
    for problem in problems:
        click.echo(legible(problem), err=True)
    if problems:
        sys.exit(1)
    kinds = [count(len(settings.repositories), "repository")]
    if settings.upstreams:
        kinds.append(f"{count(len(settings.upstreams), 'place')} upstream")
    click.echo(f"{settings.source}: ok, {', '.join(kinds)}")


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
