"""A blocking HTTP/1.1 client that costs little: one socket, kept alive, no header objects.

`drain` has the kernel throw the body away (MSG_TRUNC, tcp(7)), so that the reader of a 20 MB pack
is not what is measured.
"""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

ANSWER_SECONDS_MAX: Final = 120.0
READ_BYTES: Final = 256 * 1024
HEAD_BYTES_MAX: Final = 64 * 1024


class WrongAnswer(Exception):
    """A server did not say what it should have: the measurement is void."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request, as bytes of a head and a body."""

    path: str
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    def encode(self, port: int, *, is_last: bool = False) -> bytes:
        lines = [f"{self.method} {self.path} HTTP/1.1", f"Host: 127.0.0.1:{port}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        if self.body or self.method == "POST":
            lines.append(f"Content-Length: {len(self.body)}")
        if is_last:
            lines.append("Connection: close")
        return "\r\n".join([*lines, "", ""]).encode() + self.body


class Connection:
    """A connection to a server on this machine."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._socket = socket.create_connection(("127.0.0.1", port), ANSWER_SECONDS_MAX)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._ahead = b""
        self._scratch = bytearray(READ_BYTES)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, request: Request, *, status: int = 200) -> bytes:
        """Send a request and return the body of the answer.

        Raises:
            WrongAnswer: It has another status, or breaks off.
        """
        parts: list[bytes] = []
        self._exchange(request, status, lambda size: parts.append(self._take(size)))
        return b"".join(parts)

    def drain(self, request: Request) -> int:
        """Send a request, throw the body of the answer away, and return its length."""
        sizes: list[int] = []

        def drop(size: int) -> None:
            self._drop(size)
            sizes.append(size)

        self._exchange(request, 200, drop)
        return sum(sizes)

    def _exchange(self, request: Request, expected: int, consume: Callable[[int], None]) -> None:
        self._socket.sendall(request.encode(self.port))
        head = self._until(b"\r\n\r\n")
        fields = head.lower() + b"\r\n"
        status = int(head[9:12])
        if b"\r\ntransfer-encoding: chunked" in fields:
            while size := int(self._until(b"\r\n").split(b";")[0], 16):
                consume(size)
                self._take(2)
            self._until(b"\r\n")
        elif (at := fields.find(b"\r\ncontent-length:")) >= 0:
            size = int(fields[at + 17 : fields.index(b"\r\n", at + 2)])
            if size:
                consume(size)
        if status != expected:
            raise WrongAnswer(f"{request.method} {request.path}: {head.splitlines()[0]!r}")

    def _until(self, mark: bytes) -> bytes:
        while (at := self._ahead.find(mark)) < 0:
            if len(self._ahead) > HEAD_BYTES_MAX:
                raise WrongAnswer("the answer's head has no end")
            # Little at a time: what follows a head may be dropped without being copied.
            self._ahead += self._more(4096)
        line, self._ahead = self._ahead[:at], self._ahead[at + len(mark) :]
        return line

    def _take(self, size: int) -> bytes:
        parts = [self._ahead[:size]]
        self._ahead = self._ahead[size:]
        left = size - len(parts[0])
        while left:
            parts.append(self._more(min(left, READ_BYTES)))
            left -= len(parts[-1])
        return b"".join(parts)

    def _drop(self, size: int) -> None:
        left = size - len(self._ahead[:size])
        self._ahead = self._ahead[size:]
        while left:
            dropped = self._socket.recv_into(self._scratch, min(left, READ_BYTES), socket.MSG_TRUNC)
            if not dropped:
                raise WrongAnswer("the answer breaks off")
            left -= dropped

    def _more(self, size: int) -> bytes:
        data = self._socket.recv(size)
        if not data:
            raise WrongAnswer("the answer breaks off")
        return data


def ask_once(port: int, request: Request, *, status: int = 200) -> bytes:
    """Ask on a connection of its own."""
    with Connection(port) as connection:
        return connection.ask(request, status=status)
