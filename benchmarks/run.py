"""What every row is given, and how two sides take turns.

Turns (A B A B) and not one after the other, so that whatever else the machine does hits both.
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import wrk
from benchmarks.figures import Side
from benchmarks.http_client import Request, WrongAnswer, ask_once
from benchmarks.peers import Peer
from benchmarks.processors import apart
from benchmarks.repositories import Repositories, Repository
from benchmarks.scale import Scale
from benchmarks.service import Service, open_service


@dataclass(frozen=True, slots=True)
class Place:
    """A request and the port of the server that is to answer it.

    Attributes:
        server: The server's processes; where all are known, a single client runs apart from them.
    """

    port: int
    request: Request
    server: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the suite.

    Attributes:
        directory: For files of this run only.
        overrides: Configuration of every mirror, by dotted key.
    """

    scale: Scale
    directory: Path
    peer: Peer
    repositories: Repositories
    overrides: Mapping[str, Any]

    def service(
        self,
        *repositories: Repository,
        wait_for: frozenset[str] | None = None,
        peer: Peer | None = None,
    ) -> AbstractContextManager[Service]:
        """Run a mirror of these, each from the peer under its own name."""
        upstreams = {each.name: (peer or self.peer).url(each.name) for each in repositories}
        return open_service(
            self.new_directory(), upstreams, overrides=self.overrides, wait_for=wait_for
        )

    def new_directory(self) -> Path:
        number = sum(1 for _ in self.directory.glob("part-*"))
        place = self.directory / f"part-{number}"
        place.mkdir()
        return place

    def load(self, load: wrk.Load, *places: Place) -> list[Side]:
        """Have wrk ask at each place in turn; returns a side per place.

        Raises:
            WrongAnswer: There was an error, or answers were shorter than the first one.
        """
        sizes = [len(ask_once(place.port, place.request)) for place in places]
        rounds: list[list[Side]] = [[] for _ in places]
        with contextlib.ExitStack() as stack:
            prefix: list[str] = []
            if load.clients == 1 and all(place.server for place in places):
                servers = {process for place in places for process in place.server}
                prefix = stack.enter_context(apart(servers))
            for _ in range(self.scale.wrk_rounds):
                for place, size, sides in zip(places, sizes, rounds, strict=True):
                    sides.append(self._load_once(load, place, size, prefix))
        return [Side.of_rounds(sides) for sides in rounds]

    def _load_once(self, load: wrk.Load, place: Place, size: int, prefix: list[str]) -> Side:
        result = wrk.Wrk(
            place.port,
            place.request,
            load,
            seconds=self.scale.wrk_seconds,
            directory=self.directory,
            prefix=prefix,
        ).finish()
        if result.bytes < size * result.requests:
            raise WrongAnswer(f"{place.request.path}: answers are shorter under load")
        return result.side()


def take_turns(count: int, *actions: Callable[[int], object]) -> list[Side]:
    """Do each action `count` times, in turn, with the number of the turn; returns a side each.

    An action that returns a number has measured its milliseconds itself.
    """
    times: list[list[float]] = [[] for _ in actions]
    for number in range(count):
        for action, taken in zip(actions, times, strict=True):
            began_at = time.perf_counter()
            found = action(number)
            ended_at = time.perf_counter()
            taken.append(found if isinstance(found, float) else (ended_at - began_at) * 1000)
    return [Side.of_times(taken) for taken in times]


def plural(count: int, noun: str) -> str:
    """Return "1 client", "64 clients"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
