"""What passes by in a push: the upstream's refs, which it wants to change, which were changed.

gitprotocol-pack(5), "Pushing Data To a Server": the refs come down; commands and a pack go up; a
report-status comes back, within side-band 1 where that was agreed. Nothing here answers a push, or
decides about one: the readers look on while the bytes go by, and take them as they are sliced.

What can't be understood raises nothing: the upstream says what it thinks of it. It only means that
we don't know what was changed.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from mirror.errors import ProtocolError
from mirror.wire.names import ZERO_ID, ObjectId, RefName, is_ref_name
from mirror.wire.pktline import Packet, PacketDecoder, Special, text

COMMANDS_MAX: Final = 10_000
"""Of a push with more, nobody needs to know each ref: any may have changed."""

_TIP: Final = re.compile(rb"([0-9a-f]{40}) ([^\0]+)(?:\0.*)?", re.DOTALL)
_COMMAND: Final = re.compile(rb"([0-9a-f]{40}) ([0-9a-f]{40}) (.+)", re.DOTALL)
_DATA_BAND: Final = 1


@dataclass(frozen=True, slots=True)
class RefUpdate:
    """A command of a push; `None` for no such ref."""

    ref: RefName
    before: ObjectId | None
    after: ObjectId | None


class TipsReader:
    """Looks at receive-pack's advertisement: which refs are not as one knows them.

    Attributes:
        news: Their tips; at most `COMMANDS_MAX` of them.
    """

    def __init__(self, is_known: Callable[[RefName, ObjectId], bool]) -> None:
        """Begin to look.

        Args:
            is_known: Tells whether that ref with that tip is no news.
        """
        self.news: dict[RefName, ObjectId] = {}
        self._is_known = is_known
        self._decoder = PacketDecoder()
        self._is_broken = False

    def feed(self, data: bytes) -> None:
        """Look at the next bytes of the advertisement, however they were sliced."""
        if self._is_broken:
            return
        self._decoder.feed(data)
        for packet in _packets(self._decoder):
            if packet is None:
                self._is_broken = True
            elif isinstance(packet, bytes) and len(self.news) < COMMANDS_MAX:
                self._take(text(packet))

    def _take(self, line: bytes) -> None:
        tip = _TIP.fullmatch(line)  # not so: the service's name, a version, a line of shallows
        if tip is None or not is_ref_name(tip[2]):  # `.have` is none
            return
        ref, oid = RefName(tip[2]), ObjectId(tip[1])
        if not self._is_known(ref, oid):
            self.news[ref] = oid


class CommandsReader:
    """Looks at the beginning of a push's body: its commands, up to the flush-pkt.

    Attributes:
        is_ended: The commands are over; a pack may follow, which is not looked at.
        is_understood: All of them were plain commands; not so for a signed push (``push-cert``).
        has_side_band: The client wants the report within side-band 1.
    """

    def __init__(self) -> None:
        self.is_ended = False
        self.is_understood = True
        self.has_side_band = False
        self._decoder = PacketDecoder()
        self._updates: dict[RefName, RefUpdate] = {}
        self._is_first = True

    def feed(self, data: bytes) -> None:
        """Look at the next bytes of the body, however they were sliced."""
        if self.is_ended:
            return
        self._decoder.feed(data)
        for packet in _packets(self._decoder):
            if not isinstance(packet, bytes):
                self._end(is_understood=self.is_understood and packet is Special.FLUSH)
                return
            self._take(text(packet))

    def updates(self) -> dict[RefName, RefUpdate]:
        """Return the commands by ref; as far as they were understood."""
        return self._updates

    def _take(self, line: bytes) -> None:
        if line.startswith(b"shallow "):
            return
        if self._is_first:
            line, _, capabilities = line.partition(b"\0")
            self._is_first = False
            self.has_side_band = b"side-band-64k" in capabilities.split()
        command = _COMMAND.fullmatch(line)
        if command is None or not is_ref_name(command[3]) or len(self._updates) >= COMMANDS_MAX:
            self.is_understood = False
            return
        ref = RefName(command[3])
        self._updates[ref] = RefUpdate(ref, _tip(command[1]), _tip(command[2]))

    def _end(self, *, is_understood: bool) -> None:
        self.is_ended = True
        self.is_understood = is_understood
        self._decoder.remainder()


class ReportReader:
    """Looks at the answer to a push: the report-status in it.

    Attributes:
        accepted: The refs that the upstream says it changed.
        rejected: Those that it says it did not.
        is_understood: The report was whole, with a word on each command.
    """

    def __init__(self, *, has_side_band: bool) -> None:
        self.accepted: set[RefName] = set()
        self.rejected: set[RefName] = set()
        self.is_understood = False
        self._outer = PacketDecoder() if has_side_band else None
        self._inner = PacketDecoder()
        self._is_broken = False

    def feed(self, data: bytes) -> None:
        """Look at the next bytes of the answer, however they were sliced."""
        if self._is_broken:
            return
        if self._outer is None:
            self._feed_report(data)
            return
        self._outer.feed(data)
        for packet in _packets(self._outer):
            if packet is None:
                self._is_broken = True
            elif isinstance(packet, bytes) and packet[:1] == b"\1":
                self._feed_report(packet[1:])

    def _feed_report(self, data: bytes) -> None:
        self._inner.feed(data)
        for packet in _packets(self._inner):
            if packet is None:
                self._is_broken = True
                return
            if packet is Special.FLUSH:
                self.is_understood = True
            elif isinstance(packet, bytes):
                self._take(text(packet))

    def _take(self, line: bytes) -> None:
        word, _, rest = line.partition(b" ")
        if len(self.accepted) + len(self.rejected) >= COMMANDS_MAX:
            self._is_broken = True
        elif word == b"ok":
            self.accepted.add(RefName(rest))
        elif word == b"ng":
            self.rejected.add(RefName(rest.partition(b" ")[0]))


def changes_of(commands: CommandsReader, report: ReportReader) -> list[RefUpdate] | None:
    """Return what a push has changed, as far as both sides say so; `None` where that is unclear.

    A hook of the upstream may have put something else in the place of what was pushed
    (report-status-v2, ``option``): what its listing says stays the truth.
    """
    updates = commands.updates()
    if not (commands.is_ended and commands.is_understood and report.is_understood):
        return None
    if updates.keys() != report.accepted | report.rejected:
        return None
    return [update for ref, update in updates.items() if ref in report.accepted]


def _tip(oid: bytes) -> ObjectId | None:
    return None if oid == ZERO_ID else ObjectId(oid)


def _packets(decoder: PacketDecoder) -> Iterator[Packet | None]:
    """Yield what is there, and `None` once where it is no pkt-line: then that is all."""
    try:
        yield from decoder
    except ProtocolError:
        decoder.remainder()
        yield None
