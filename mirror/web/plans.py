"""What was planned for the fetches seen last. Pure bookkeeping on the event loop.

Readers of one kind ask the same question in the same bytes. What was planned for a body is planned
for the next one like it, for as long as the refs are the same; and while the first of many is being
planned, the others wait for that instead of doing the same.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final
from weakref import ReferenceType, ref

from mirror.refresh.mirror import Mirror
from mirror.refresh.shapes import Shape
from mirror.repository.fetching import FetchPlan
from mirror.repository.packing.engine import PackRequest
from mirror.repository.packing.pack_store import PackKey
from mirror.repository.snapshot import RefSnapshot

PLANS_MAX: Final = 2048
PLANNED_BODY_BYTES_MAX: Final = 8 * 1024
"""Bodies of plans that are remembered: 16 MiB of them at the very most."""

_Question = tuple[str, int, bytes]


@dataclass(frozen=True, slots=True)
class Planned:
    """How a fetch is answered.

    Attributes:
        plan: What goes before the pack, and how that is framed.
        pack: What the pack holds.
        key: The pack's name.
        shape: What kind of reader it is for.
        by_name: Whether the fetch names refs; then it depends on how fresh they are.
        sideband_all: Whether errors, too, are to be in a side-band.
    """

    plan: FetchPlan
    pack: PackRequest
    key: PackKey
    shape: Shape | None
    by_name: bool
    sideband_all: bool = False


class Plans:
    """Plans by repository, version of the protocol and body, each good for one snapshot."""

    def __init__(self) -> None:
        self._plans: OrderedDict[_Question, tuple[ReferenceType[RefSnapshot], Planned]]
        self._plans = OrderedDict()
        self._underway: dict[_Question, asyncio.Event] = {}

    async def find(self, mirror: Mirror, version: int, body: bytes) -> Planned | None:
        """Return what was planned for such a body, after a wait if that is under way."""
        if len(body) > PLANNED_BODY_BYTES_MAX:
            return None
        question = (mirror.name, version, body)
        planned = self._known(question, mirror.snapshot)
        underway = self._underway.get(question)
        if planned is None and underway is not None:
            await underway.wait()
            planned = self._known(question, mirror.snapshot)
        return planned

    def _known(self, question: _Question, snapshot: RefSnapshot | None) -> Planned | None:
        known = self._plans.get(question)
        if known is None or known[0]() is not snapshot:
            return None
        self._plans.move_to_end(question)
        return known[1]

    @contextmanager
    def making(self, mirror: Mirror, version: int, body: bytes) -> Iterator[None]:
        """Say that a body is being planned for; whoever asks meanwhile waits for the end."""
        question = (mirror.name, version, body)
        # Where one is under way still, the one before did not come to a plan that lasts.
        if len(body) > PLANNED_BODY_BYTES_MAX or question in self._underway:
            yield
            return
        done = self._underway[question] = asyncio.Event()
        try:
            yield
        finally:
            del self._underway[question]
            done.set()

    def add(
        self, mirror: Mirror, snapshot: RefSnapshot, version: int, body: bytes, planned: Planned
    ) -> None:
        """Remember a plan."""
        if len(body) > PLANNED_BODY_BYTES_MAX or planned.by_name:
            return
        self._plans[mirror.name, version, body] = ref(snapshot), planned
        while len(self._plans) > PLANS_MAX:
            self._plans.popitem(last=False)
