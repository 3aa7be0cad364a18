"""What is right: answers, packs, events and log lines, each against what is known. Pure."""

import io
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dulwich.object_format import SHA1
from dulwich.object_store import MemoryObjectStore, peel_sha
from dulwich.objects import Commit, ObjectID, ShaFile, Tree
from dulwich.pack import PackData, PackInflater

from tests.e2e.day.rules import History, Observer, Sighting
from tests.mirror_service import ZERO_ID

MAIN: Final = "refs/heads/main"
SHOWN: Final = ("refs/heads/", "refs/tags/")
SHOWN_KEPT_MAX: Final = 500
GITLINK_MODE: Final = 0o160000
WORDS_OF_DAMAGE: Final = ("bad object", "inflate", "corrupt", "mismatch", "did not receive")
LEVELS: Final = ("error", "critical")


@dataclass(frozen=True, slots=True)
class Asked:
    """What was known when somebody asked.

    Attributes:
        seen: What somebody was shown before.
        floors: What the mirror had been told of before.
    """

    seen: Mapping[str, int]
    floors: Mapping[str, int]


class Watch:
    """All readers of one repository together: none sees what is older than another saw before.

    Attributes:
        history: What the upstream had; an entry is there before anybody can see it.
        floors: By ref, the latest push of which the mirror was told.
        shown: The latest object ids that somebody was shown, each with when that was last.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.history = History()
        self.floors: dict[str, int] = {}
        self.shown: OrderedDict[str, float] = OrderedDict()
        self._clock = clock
        self._observer = Observer(self.history)

    def ask(self) -> Asked:
        """Call before a request."""
        return Asked(dict(self._observer.seen), dict(self.floors))

    def raise_floor(self, ref: str, number: int) -> None:
        """The mirror knows of a push from now on."""
        self.floors[ref] = max(self.floors.get(ref, 0), number)

    def judge(
        self, asked: Asked, found: Mapping[str, str], *, is_stale: bool, knows_stale: bool = True
    ) -> Iterator[str]:
        """Judge what was shown, as soon as it is there.

        Args:
            asked: What `ask` said before.
            found: All refs that were shown, HEAD and peeled ones too.
            is_stale: Whether it was marked so.
            knows_stale: Whether whoever asked can tell.
        """
        if MAIN not in found:
            yield f"main is not there: {sorted(found)[:10]}"
            return
        if found.get("HEAD", found[MAIN]) != found[MAIN]:
            yield f"HEAD is {found['HEAD']}, and main is {found[MAIN]}"
        refs = dict.fromkeys(self.history.refs, ZERO_ID)
        refs |= {
            name: oid
            for name, oid in found.items()
            if name.startswith(SHOWN) and not name.endswith("^{}")
        }
        self._show(oid for oid in refs.values() if oid != ZERO_ID)
        floors = asked.floors if knows_stale else {}
        one = Sighting("", refs, floors, self.history.lengths(), is_stale)
        yield from self._observer.see(one, asked.seen)

    def _show(self, oids: Iterable[str]) -> None:
        now = self._clock()
        for oid in oids:
            self.shown[oid] = now
            self.shown.move_to_end(oid)
        while len(self.shown) > SHOWN_KEPT_MAX:
            self.shown.popitem(last=False)

    def judge_told(self, ref: str, after: str) -> Iterator[str]:
        """Judge an event: from now on everybody sees that or what came later."""
        at = self.history.position(ref, after)
        if at is None:
            yield f"told that {ref} is {after}, which it never was"
            return
        # What it may be told again, after a kill, it saw before.
        one = Sighting("", {ref: after}, {}, self.history.lengths())
        list(self._observer.see(one, {}))


class Hearing:
    """What one receiver knows of one repository: in the end, all."""

    def __init__(self, watch: Watch) -> None:
        self._history = watch.history
        self._known = {ref: len(oids) - 1 for ref, oids in watch.history.refs.items()}
        self._restarts: dict[str, int] = {}

    def hear(self, ref: str, after: str, restarts: int) -> Iterator[str]:
        """Judge an event that the receiver acknowledges.

        Args:
            ref: Of the event.
            after: What it is now.
            restarts: How often the service was started so far: what was acknowledged just before
                it ended may be told once more.
        """
        known = self._known.get(ref, 0)
        at = self._history.position(ref, after, known)
        if at is None and self._restarts.get(ref, 1) < restarts:
            at = self._history.position(ref, after)
        if at is None:
            name = self._history.name(ref, after)
            yield f"told that {ref} is {name}, after it was told of {known}"
            return
        self._known[ref] = max(at, known)
        self._restarts[ref] = restarts

    def missing(self) -> list[str]:
        """Return what it was not told of."""
        return [
            f"{ref} is {oids[-1]}, it knows {oids[self._known.get(ref, 0)]}"
            for ref, oids in self._history.refs.items()
            if oids[self._known.get(ref, 0)] != oids[-1]
        ]


def pack_mistakes(pack: bytes, wants: Collection[str]) -> Iterator[str]:
    """Judge a pack that needs nothing else: that it is whole, and has each want with its tree.

    Object ids are made anew from what is in it, so a changed byte is a missing object.
    """
    store = MemoryObjectStore()
    try:
        with PackData.from_file(io.BytesIO(pack), SHA1, len(pack)) as data:
            data.check()
            objects: Iterable[ShaFile] = PackInflater.for_pack_data(data)
            for one in objects:
                store.add_object(one)
    except Exception as error:  # noqa: BLE001 - whatever a wrong pack makes of it
        yield f"a pack of {len(pack)} bytes is not sound: {type(error).__name__}: {error}"
        return
    for want in wants:
        yield from _missing(store, want)


def _missing(store: MemoryObjectStore, want: str) -> Iterator[str]:
    try:
        _, commit = peel_sha(store, ObjectID(want.encode()))
    except KeyError as error:
        yield f"{want} is not in its pack: {error}"
        return
    assert isinstance(commit, Commit)
    left = [commit.tree]
    while left:
        oid = left.pop()
        if oid not in store:
            yield f"the pack of {want} lacks {oid.decode()}"
            return
        found = store[oid]
        if isinstance(found, Tree):
            left += [one.sha for one in found.iteritems() if one.mode != GITLINK_MODE]


def log_mistake(
    line: str, secrets: Sequence[str], is_explained: Callable[[Mapping[str, Any]], bool]
) -> str | None:
    """Judge a line of the log; returns what is wrong with it."""
    if any(secret in line for secret in secrets):
        return "a secret is in the log"
    try:
        event = json.loads(line)
    except ValueError:
        event = None
    if not isinstance(event, dict) or "event" not in event:
        return None if is_explained({"event": "no JSON"}) else f"not JSON: {line[:500]}"
    is_bad = event.get("level") in LEVELS or "exception" in event or "Traceback" in line
    if is_bad and not is_explained(event):
        return f"nothing explains: {line[:3000].rstrip()}"
    return None


def words_of_damage(said: str) -> list[str]:
    """Return what a client said that it says only of a damaged answer, not passing on our words."""
    own = "\n".join(line for line in said.splitlines() if "remote" not in line).lower()
    return [word for word in WORDS_OF_DAMAGE if word in own]


def refusal_mistake(
    status: int, headers: Mapping[str, str], allowed: Collection[int]
) -> str | None:
    """Judge an answer other than 200."""
    if status not in allowed:
        return f"answered {status}"
    if status == 503 and "Retry-After" not in headers:
        return "answered 503 without Retry-After"
    return None
