"""A crowd of clients: each request on a new connection, so many in flight, every answer kept.

Written on epoll itself, because the crowd shares two cores with the server: a request costs it a
third of what it would cost on an event loop with transports. Answers are taken apart after the
last one has come.
"""

import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.http_client import Request, WrongAnswer

READ_BYTES: Final = 256 * 1024
SILENCE_SECONDS_MAX: Final = 60.0


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer, and how long it took from the connect to the last byte, in milliseconds."""

    request: Request
    raw: bytes
    milliseconds: float

    def body(self) -> bytes:
        """Return the body of a 200.

        Raises:
            WrongAnswer: It is something else.
        """
        head, found, body = self.raw.partition(b"\r\n\r\n")
        if not found or head[9:12] != b"200":
            raise WrongAnswer(f"{self.request.path}: {self.raw[:200]!r}")
        if b"transfer-encoding: chunked" not in head.lower():
            return body
        parts, at = [], 0
        while True:
            end = body.index(b"\r\n", at)
            size = int(body[at:end].split(b";")[0], 16)
            if not size:
                return b"".join(parts)
            parts.append(body[end + 2 : end + 2 + size])
            at = end + 4 + size


class _Client:
    """One request under way."""

    def __init__(self, port: int, request: Request) -> None:
        self.request = request
        self.parts: list[bytes] = []
        self._encoded = request.encode(port, is_last=True)
        self.began_at = time.perf_counter()
        self.socket = socket.socket()
        self.socket.settimeout(0)
        self.is_connecting = bool(self.socket.connect_ex(("127.0.0.1", port)))
        if not self.is_connecting:
            self.send()

    def send(self) -> None:
        self.is_connecting = False
        if self.socket.send(self._encoded) != len(self._encoded):
            raise WrongAnswer(f"{self.request.path}: the request does not fit into the socket")

    def answered(self) -> Answered:
        took = (time.perf_counter() - self.began_at) * 1000
        self.socket.close()
        return Answered(self.request, b"".join(self.parts), took)


def stampede(port: int, requests: Sequence[Request], *, in_flight: int) -> list[Answered]:
    """Ask all of them, `in_flight` at any time, each on a new connection.

    Raises:
        WrongAnswer: Nothing came for `SILENCE_SECONDS_MAX`, or a connection was refused.
    """
    answers: list[Answered] = []
    clients: dict[int, _Client] = {}
    waiting = iter(requests)
    with select.epoll() as poller:

        def begin() -> None:
            if (request := next(waiting, None)) is None:
                return
            client = _Client(port, request)
            clients[client.socket.fileno()] = client
            wanted = select.EPOLLOUT if client.is_connecting else select.EPOLLIN
            poller.register(client.socket, wanted)

        try:
            for _ in range(in_flight):
                begin()
            while clients:
                events = poller.poll(SILENCE_SECONDS_MAX)
                if not events:
                    raise WrongAnswer(f"{len(clients)} requests are not answered")
                for number, _ in events:
                    client = clients[number]
                    if client.is_connecting:
                        client.send()
                        poller.modify(number, select.EPOLLIN)
                    elif data := client.socket.recv(READ_BYTES):
                        client.parts.append(data)
                    else:
                        del clients[number]
                        answers.append(client.answered())
                        begin()
        except OSError as error:
            raise WrongAnswer(f"port {port}: {error}") from error
        finally:
            for client in clients.values():
                client.socket.close()
    return answers
