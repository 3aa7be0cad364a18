"""Fuzzes the whole HTTP surface of a running service: `make fuzz-http`, see docs/fuzzing.md.

Each half gets a service of its own. What is found is written to `.fuzz/http`, and makes the status
1; `--only 7/123` sends one stream again, and `--kept FILE` one that was written there.
"""

import argparse
import asyncio
import itertools
import logging
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import uvloop

from tests.httpfuzz.answers import WrongAnswer
from tests.httpfuzz.described import HALF as DESCRIBED
from tests.httpfuzz.described import ask_as_described
from tests.httpfuzz.sending import Sender, kept_stream
from tests.httpfuzz.service import Fuzzed, leaks, running
from tests.httpfuzz.streams import Stream, Streams

FOUND: Final = Path(".fuzz/http")
STREAMS: Final = "streams"
AT_ONCE: Final = 16
WARM_UP_STREAMS: Final = 600
"""Pools and caches grow; and each kind of file was read once."""


def main() -> int:
    """Run; returns the exit status: 1 where something was found."""
    arguments = _arguments()
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # the forge
    found = []
    for half in arguments.halves or (STREAMS, DESCRIBED):
        with tempfile.TemporaryDirectory(prefix="git-mirror-fuzz-http-") as directory:
            found += uvloop.run(_half(half, Path(directory), arguments))
    for one in found:
        print(f"FOUND: {one}")
    print(f"{len(found)} found; --seed {arguments.seed} asks the same again")
    return int(bool(found))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.httpfuzz")
    parser.add_argument("halves", nargs="*", choices=[[], STREAMS, DESCRIBED], help="both, if none")
    parser.add_argument("--seconds-each", type=int, default=30)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--workers", type=int, default=1, help="so many processes serve")
    parser.add_argument("--at-once", type=int, default=AT_ONCE, help="so many streams at a time")
    parser.add_argument("--only", help="send one stream, SEED/NUMBER, and show what comes")
    parser.add_argument("--kept", type=Path, help="the same with a stream of a file")
    return parser.parse_args()


async def _half(half: str, directory: Path, arguments: argparse.Namespace) -> list[str]:
    async with running(directory, workers=arguments.workers) as (_, fuzzed):
        watching = asyncio.create_task(fuzzed.watch())
        try:
            if arguments.only or arguments.kept:
                return await _one(fuzzed, arguments)
            print(f"--- {half}, seed {arguments.seed}", flush=True)
            await _send(fuzzed, arguments.seed, 0, arguments, streams_max=WARM_UP_STREAMS)
            before = await fuzzed.calm()
            if half == STREAMS:
                found = await _send(fuzzed, arguments.seed, arguments.seconds_each, arguments)
            else:
                found = await ask_as_described(
                    fuzzed, arguments.seed, arguments.seconds_each, directory, FOUND
                )
            after = await fuzzed.calm()
            found += leaks(before, after)
            print(f"before: {before}\nafter:  {after}; at most {fuzzed.peak_bytes / 1e6:.0f} MB")
        except (WrongAnswer, AssertionError) as error:
            found = [str(error)]
        finally:
            watching.cancel()
        found += [f"in the log: {line.strip()}" for line in fuzzed.wrong_lines[:20]]
        print(f"{fuzzed.lines} lines of the log, {len(fuzzed.wrong_lines)} of them errors")
        return found


async def _send(
    fuzzed: Fuzzed,
    seed: int,
    seconds: float,
    arguments: argparse.Namespace,
    *,
    streams_max: int | None = None,
) -> list[str]:
    """Send streams for so long, or so many; returns what was found."""
    made = Streams(seed, fuzzed.known, fuzzed.bundles)
    until = time.monotonic() + seconds

    def streams() -> Iterator[Stream]:
        # The warm-up has numbers of its own: what is sent in time does not depend on it.
        for number in itertools.count(-(streams_max or 0)):
            if number == 0 and streams_max:
                return
            if not streams_max and time.monotonic() > until:
                return
            assert not fuzzed.has_ended, "the service has ended"
            yield made[number]

    sender = Sender(fuzzed.host, fuzzed.port, fuzzed.known, fuzzed.polls)
    await sender.send_all(streams(), at_once=arguments.at_once)
    if not streams_max:
        print("\n".join(sender.tally.lines()))
    return [f"{one.wrong} ({one.keep(FOUND)})" for one in sender.tally.findings]


async def _one(fuzzed: Fuzzed, arguments: argparse.Namespace) -> list[str]:
    if arguments.kept:
        stream = kept_stream(arguments.kept)
    else:
        seed, number = map(int, arguments.only.split("/"))
        stream = Streams(seed, fuzzed.known, fuzzed.bundles)[number]
    print(*stream.pieces, stream.end, sep="\n")
    sender = Sender(fuzzed.host, fuzzed.port, fuzzed.known, fuzzed.polls)
    await sender.send_all([stream])
    print("\n".join(sender.tally.lines()))
    await asyncio.sleep(1.0)  # for the log
    return [one.wrong for one in sender.tally.findings] + fuzzed.wrong_lines


if __name__ == "__main__":
    sys.exit(main())
