"""`git-mirror doctor`: what an operator would check by hand, with times."""

import dataclasses
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mirror.cli.root import main
from mirror.cli.running import CONFIG_OPTION, fail, load, run, service_url
from mirror.doctor.examine import examine
from mirror.doctor.finding import Finding, Verdict
from mirror.logs import legible

_COLOURS: Final = {
    Verdict.OK: "green",
    Verdict.NOTE: "cyan",
    Verdict.WARNING: "yellow",
    Verdict.PROBLEM: "red",
}


@main.command()
@CONFIG_OPTION
@click.option("--url", help="The service's address. Default: from the configuration.")
@click.option("--json", "as_json", is_flag=True, help="The findings as JSON, for machines.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file with a token to read with, where not everybody may.",
)
@click.argument("repositories", nargs=-1)
def doctor(
    config_path: Path | None,
    url: str | None,
    token_file: Path | None,
    repositories: tuple[str, ...],
    *,
    as_json: bool,
) -> None:
    """Examine this machine, the way to the upstreams, and the running service.

    Disk latency, space, file limits; what lies in the data directory, and who may read it; DNS,
    TCP, TLS and clock of each upstream's host; a poll and a fetch of each upstream, and the same
    through the mirror; freshness and webhooks; receivers of events. Looks at the first ten
    repositories, or at those that are named. Exit code 1 when there is a problem.
    """
    settings = load(config_path)
    names = [name.strip("/").removesuffix(".git") for name in repositories]
    for name in names:
        if name not in settings.repositories:
            fail(f"no repository {name!r} in {settings.source}")
    place = url.rstrip("/") if url else service_url(settings)
    findings = run(examine(settings, names, url=place, token_file=token_file))
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(one) for one in findings], indent=2))
    else:
        console = Console()
        console.print(_table(findings))
        console.print(_summary(findings))
    sys.exit(1 if any(one.verdict is Verdict.PROBLEM for one in findings) else 0)


def _table(findings: list[Finding]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("", "what", "check", "found", "to do"):
        table.add_column(heading, overflow="fold")
    before = ""
    for one in findings:
        subject = "" if one.subject == before else one.subject
        before = one.subject
        table.add_row(
            f"[{_COLOURS[one.verdict]}]{one.verdict.value}[/]",
            escape(legible(subject)),
            escape(legible(one.check)),
            escape(legible(one.figure)),
            escape(legible(one.advice)),
        )
    return table


def _summary(findings: list[Finding]) -> str:
    counts = Counter(one.verdict for one in findings)
    return ", ".join(f"{counts[verdict]} {verdict.value}" for verdict in Verdict if counts[verdict])
