"""A client that polls as it should, and how long it waits."""

import itertools
import socket
import ssl
import time
from dataclasses import dataclass, field
from typing import Final

from benchmarks.floods.kinds import POLL, Target

POLL_SECONDS: Final = 0.005
_PIECE: Final = 64 * 1024


@dataclass(slots=True)
class Waits:
    """Seconds that polls took."""

    taken: list[float] = field(default_factory=list)

    def share_ms(self, percent: int) -> float:
        """Return what so many percent did not exceed, in milliseconds."""
        return sorted(self.taken)[len(self.taken) * percent // 100] * 1000


class Prober:
    """A client with one connection, which it opens anew when the mirror has closed it.

    Every second poll is in words of its own, as those of a client that the mirror has not seen yet.

    Attributes:
        known: The waits for polls that the mirror knows by heart.
        fresh: The waits for the others.
        lost: Polls that got no answer, not even over a new connection.
    """

    def __init__(self, target: Target, *, tls: bool, unix: bool) -> None:
        self._target, self._tls, self._unix = target, tls, unix
        self._polls = itertools.count()
        self._line: socket.socket | None = None
        self.known, self.fresh = Waits(), Waits()
        self.lost = 0

    def poll(self) -> None:
        """Poll once; a new connection, if it needs one, is part of the wait."""
        number = next(self._polls)
        poll = POLL % self._target.name.encode()
        if number % 2:
            poll = poll[:-2] + b"X-Number: %d\r\n\r\n" % number
        began_at = time.perf_counter()
        if not any(self._answered(poll) for _ in range(2)):
            self.lost += 1
        (self.fresh if number % 2 else self.known).taken.append(time.perf_counter() - began_at)

    def _answered(self, poll: bytes) -> bool:
        try:
            line = self._line = self._line or self._connect()
            line.sendall(poll)
            answer = b""
            while b"\r\n\r\n" not in answer or not answer.endswith(b"0000"):
                piece = line.recv(_PIECE)
                if not piece:
                    raise ConnectionResetError
                answer += piece
        except OSError:
            if self._line is not None:
                self._line.close()
                self._line = None
            return False
        return answer.startswith(b"HTTP/1.1 200")

    def _connect(self) -> socket.socket:
        line = socket.socket(socket.AF_UNIX if self._unix else socket.AF_INET)
        line.settimeout(10)
        line.connect(self._target.unix if self._unix else ("127.0.0.1", self._target.port))
        if not self._tls:
            return line
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context.wrap_socket(line)
