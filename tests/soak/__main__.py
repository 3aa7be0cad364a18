"""`python -m tests.soak --minutes 20 --seed 1`: what `make soak` runs."""

import argparse
import asyncio
import functools
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import uvloop

from tests.soak.clients import KINDS
from tests.soak.conducting import Plan, prepared
from tests.soak.events import EVENTS
from tests.soak.ledger import Ledger


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a soak; returns the exit status: 1 where something did not hold."""
    options = _options().parse_args(arguments)
    seed = secrets.randbelow(1_000_000) if options.seed is None else options.seed
    plan = replace(
        Plan.lasting(options.minutes * 60, options.load),
        clients=frozenset(options.clients),
        events=frozenset(options.events),
    )
    directory = Path(tempfile.mkdtemp(prefix="git-mirror-soak-"))
    print(f"Soaking for {options.minutes:g} minutes with seed {seed} in {directory}", flush=True)
    ledger = uvloop.run(_soak(directory, plan, seed, stops=options.stop))
    report = ledger.report()
    print(report, flush=True)
    if options.report is not None:
        options.report.write_text(report)
    if ledger.count or options.keep:
        print(f"The service's log, its data and the forge are in {directory}")
    else:
        shutil.rmtree(directory)
    return int(ledger.count > 0)


async def _soak(directory: Path, plan: Plan, seed: int, *, stops: bool) -> Ledger:
    ledger = Ledger(seed, stops=stops, tell=functools.partial(print, flush=True))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ledger.is_stopped.set)
    async with prepared(directory, plan, ledger) as soak:
        await soak.run()
    return ledger


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description="Hours of mixed load, and what must hold."
    )
    parser.add_argument("--minutes", type=float, default=20, help="how long; 20")
    parser.add_argument("--seed", type=int, help="of the random numbers; any")
    parser.add_argument("--load", type=float, default=1.0, help="a factor of clients and pushes")
    parser.add_argument("--stop", action="store_true", help="end at the first violation")
    parser.add_argument("--report", type=Path, help="write the report to this file, too")
    parser.add_argument("--keep", action="store_true", help="keep all files in any case")
    for what, known in (("client", KINDS), ("event", EVENTS)):
        parser.add_argument(
            f"--{what}s",
            nargs="*",
            default=[],
            choices=sorted(known),
            metavar=what.upper(),
            help=f"only these: {', '.join(sorted(known))}",
        )
    return parser


if __name__ == "__main__":
    sys.exit(main())
