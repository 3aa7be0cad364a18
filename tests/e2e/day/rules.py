"""What must hold on a deployment day, judged by what everybody saw: pure.

A ref's history is the list of what it pointed to at the upstream, one entry a push; a force-push is
an entry as any other. So "back in time" is an earlier entry, whatever the commits' ancestors are.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tests.mirror_service import ZERO_ID


class History:
    """What each ref pointed to, in the order of the upstream; `ZERO_ID` where it was not there."""

    def __init__(self) -> None:
        self.refs: dict[str, list[str]] = {}

    def record(self, ref: str, oid: str) -> int:
        """Add what a push left, and return its number."""
        oids = self.refs.setdefault(ref, [ZERO_ID])
        oids.append(oid)
        return len(oids) - 1

    def tip(self, ref: str) -> str:
        return self.refs[ref][-1]

    def tips(self) -> dict[str, str]:
        """Return the refs that are there now."""
        return {ref: oids[-1] for ref, oids in self.refs.items() if oids[-1] != ZERO_ID}

    def lengths(self) -> dict[str, int]:
        return {ref: len(oids) for ref, oids in self.refs.items()}

    def position(self, ref: str, oid: str, at_least: int = 0) -> int | None:
        """Return the first number from `at_least` on at which the ref was `oid`."""
        oids = self.refs.get(ref, [ZERO_ID])
        return next((at for at in range(at_least, len(oids)) if oids[at] == oid), None)

    def name(self, ref: str, oid: str | None) -> str:
        """Return what to call an object id in a sentence about the ref."""
        at = None if oid is None else self.position(ref, oid)
        return f"{oid} (unknown)" if at is None else f"number {at}"

    def withdraw(self, ref: str) -> None:
        """Take back the last entry: the upstream never had it."""
        self.refs[ref].pop()


@dataclass(frozen=True, slots=True)
class Sighting:
    """Refs that a reader was shown.

    Attributes:
        reader: Who.
        refs: What was shown, `ZERO_ID` for refs that were not.
        floors: By ref, the latest push whose webhook was accepted before the reader asked; empty
            for readers that can't see whether the answer was marked as stale.
        lengths: Of the history when the answer was there: what is gone went before that.
        is_stale: Whether the answer was marked so.
    """

    reader: str
    refs: Mapping[str, str]
    floors: Mapping[str, int]
    lengths: Mapping[str, int]
    is_stale: bool = False


class Observer:
    """Who sees refs again and again: never what was before, never what is too old.

    Attributes:
        seen: By ref, the number of what was last shown.
    """

    def __init__(self, history: History) -> None:
        self.seen: dict[str, int] = {}
        self._history = history

    def see(self, one: Sighting, since: Mapping[str, int] | None = None) -> Iterator[str]:
        """Judge an answer, and keep it in mind.

        Args:
            one: The answer.
            since: What had been seen when it was asked for, where several are asked for at once.
        """
        history = self._history
        before = self.seen if since is None else since
        for ref, oid in one.refs.items():
            at_least = before.get(ref, 0)
            at = history.position(ref, oid, at_least)
            if oid == ZERO_ID and at is not None and at >= one.lengths.get(ref, 1):
                at = None  # it was not gone yet
            if at is None:
                yield f"{ref} went back to {history.name(ref, oid)} from {at_least}"
                continue
            self.seen[ref] = max(self.seen.get(ref, 0), at)
            floor = one.floors.get(ref, 0)
            if not one.is_stale and history.position(ref, oid, floor) is None:
                yield (
                    f"{ref} is {history.name(ref, oid)}, not marked as stale, after the webhook of"
                    f" {floor} was accepted"
                )


@dataclass(slots=True)
class Told:
    """An event that a receiver acknowledged, or refused on purpose.

    Attributes:
        receiver: Who.
        after_kills: How often the service had been killed by then.
        is_taken: Whether it was acknowledged.
        listed: What the mirror listed for the ref when it was asked at once.
        trouble: Why the commit could not be fetched at once.
    """

    receiver: str
    ref: str
    before: str
    after: str
    after_kills: int = 0
    is_taken: bool = True
    listed: str | None = None
    trouble: str | None = None


@dataclass(slots=True)
class Record:
    """All that happened.

    Attributes:
        baseline: What the upstream had at the mirror's first clone, of which nobody is told.
        failures: What went wrong for a controller while the service was up.
    """

    history: History = field(default_factory=History)
    baseline: Mapping[str, int] = field(default_factory=dict)
    sightings: list[Sighting] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def mistakes(self, receivers: Sequence[str]) -> list[str]:
        """Return what did not hold, a sentence each."""
        found = list(self.failures)
        for reader in {one.reader: None for one in self.sightings}:
            found += self._of_reader(reader)
        for one in self.told:
            found += self._of_event(one)
        for receiver in receivers:
            for ref in self.history.refs:
                found += self._of_receiver(receiver, ref)
        return found

    def _of_reader(self, reader: str) -> Iterator[str]:
        observer = Observer(self.history)
        for number, one in enumerate(each for each in self.sightings if each.reader == reader):
            for trouble in observer.see(one):
                yield f"{reader}, answer {number}: {trouble}"

    def _of_event(self, one: Told) -> Iterator[str]:
        what = f"{one.receiver} was told {one.ref} is {self.history.name(one.ref, one.after)}"
        if one.trouble is not None:
            yield f"{what}: {one.trouble}"
            return
        at = self.history.position(one.ref, one.after)
        listed = None if one.listed is None else self._at_or_after(one.ref, one.listed, at)
        if at is None or listed is None:
            yield f"{what}: the mirror listed {self.history.name(one.ref, one.listed)}"

    def _at_or_after(self, ref: str, oid: str, at: int | None) -> int | None:
        return None if at is None else self.history.position(ref, oid, at)

    def _of_receiver(self, receiver: str, ref: str) -> Iterator[str]:
        known = self.baseline.get(ref, 0)
        last: Told | None = None
        repeats = 0
        for one in self.told:
            if one.receiver != receiver or one.ref != ref or not one.is_taken:
                continue
            what = f"{receiver} knew {known} of {ref} and was told of"
            what += f" {self.history.name(ref, one.before)} to {self.history.name(ref, one.after)}"
            follows = self.history.refs[ref][known] == one.before
            # What was acknowledged just before a kill may be told once more, perhaps with more.
            is_again = (
                not follows
                and last is not None
                and one.before == last.before
                and repeats < one.after_kills
            )
            repeats += is_again
            at = self.history.position(ref, one.after, known if is_again else known + 1)
            if at is None or not (follows or is_again):
                yield f"{what}: that does not follow"
            known = known if at is None else at
            last = one
        if self.history.refs[ref][known] != self.history.tip(ref):
            yield f"{receiver} was never told of {ref} after {known}: it is {self._latest(ref)}"

    def _latest(self, ref: str) -> int:
        return len(self.history.refs[ref]) - 1

    def is_told(self, receivers: Sequence[str]) -> bool:
        """Tell whether every receiver knows the tips of now."""
        known = {
            (receiver, ref): oids[self.baseline.get(ref, 0)]
            for receiver in receivers
            for ref, oids in self.history.refs.items()
        }
        known |= {(one.receiver, one.ref): one.after for one in self.told if one.is_taken}
        return all(known[receiver, ref] == self.history.tip(ref) for receiver, ref in known)
