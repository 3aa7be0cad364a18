"""Makes streams: what one connection brings, from a good request to pure noise.

Pure and repeatable: stream `number` of a seed is the same each time, given the same estate. A
stream is some requests, each changed in no, one or several ways (`changing`), in pieces, with an
end.
"""

import enum
import random
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Final

from tests.httpfuzz.changing import changed, damaged
from tests.httpfuzz.estate import Known
from tests.httpfuzz.requests import Request, requests

LAST: Final = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
"""Ends a connection that is understood so far."""

PIECES_MAX: Final = 40


class End(enum.Enum):
    """What a client does once all is sent."""

    READ = "reads until it is over, or nothing comes any more"
    SHUT = "says that nothing follows, and reads"
    RESET = "is gone"
    SILENT = "stays, and says nothing"


@dataclass(frozen=True, slots=True)
class Stream:
    """What one connection brings.

    Attributes:
        name: `seed/number`, or the file that it was kept in.
        pieces: One after the other, each in a write of its own.
        knows_token: The answer may be for readers alone.
    """

    name: str
    pieces: tuple[bytes, ...]
    end: End
    knows_token: bool


class Streams:
    """All streams of one seed."""

    def __init__(self, seed: int, known: Known, bundles: Sequence[str] = ()) -> None:
        self._seed = seed
        self._token = known.token.encode()
        self._requests = requests(known, tuple(bundles))

    def __getitem__(self, number: int) -> Stream:
        """Return one of them."""
        chance = random.Random(f"{self._seed}/{number}")
        parts = [self._part(chance) for _ in range(chance.choice((1, 1, 1, 2, 3, 6)))]
        if chance.random() < 0.8:
            parts.append(LAST)
        data = b"".join(parts)
        if chance.random() < 0.15:
            data = damaged(chance, data)
        end = chance.choices(list(End), weights=(80, 10, 9, 1))[0]
        return Stream(
            f"{self._seed}/{number}", _cut(chance, data), end, knows_token=self._token in data
        )

    def _part(self, chance: random.Random) -> bytes:
        request: Request = deepcopy(chance.choice(self._requests))
        data = changed(chance, request, self._requests)
        return damaged(chance, data) if chance.random() < 0.1 else data


def _cut(chance: random.Random, data: bytes) -> tuple[bytes, ...]:
    kind = chance.random()
    if kind < 0.5 or len(data) < 2:
        return (data,)
    if kind < 0.6 and len(data) <= PIECES_MAX:
        return tuple(bytes([one]) for one in data)
    count = min(chance.randrange(1, 8), len(data) - 1)
    cuts = sorted(chance.sample(range(1, len(data)), count))
    return tuple(
        data[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True)
    )
