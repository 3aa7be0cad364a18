"""The clients that do the measuring, against a server that answers in every shape."""

import socket
import threading
from collections.abc import Iterator

import pytest

from benchmarks.crowd import stampede
from benchmarks.http_client import Connection, Request, WrongAnswer, ask_once
from benchmarks.protocol import FetchAnswer, fetch

WAIT_SECONDS_MAX = 60.0
ANSWERS = {
    "/whole": b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabcdef",
    "/empty": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "/large": b"HTTP/1.1 200 OK\r\nContent-Length: 900000\r\n\r\n" + bytes(900_000),
    "/chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n",
    "/missing": b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno",
    "/broken": b"HTTP/1.1 200 OK\r\nContent-Length: 600\r\n\r\nabc",
}


@pytest.fixture
def port() -> Iterator[int]:
    """A server with a thread per connection; `/broken` and closing requests end the connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads: list[threading.Thread] = []

        def converse(line: socket.socket) -> None:
            with line, line.makefile("rb") as reader:
                while head := reader.readline():
                    path, is_last = head.split()[1].decode(), False
                    while (field := reader.readline()) not in (b"\r\n", b""):
                        is_last |= field.lower() == b"connection: close\r\n"
                    line.sendall(ANSWERS[path])
                    if is_last or path == "/broken":
                        return

        def accept() -> None:
            while True:
                try:
                    line, _ = listener.accept()
                except OSError:
                    return
                threads.append(threading.Thread(target=converse, args=(line,)))
                threads[-1].start()

        accepting = threading.Thread(target=accept)
        accepting.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join(WAIT_SECONDS_MAX)
        for thread in threads:
            thread.join(WAIT_SECONDS_MAX)


def test_answers_of_every_framing_are_read_one_after_the_other(port: int) -> None:
    with Connection(port) as connection:
        for _ in range(2):
            assert connection.ask(Request("/chunked")) == b"abc0123456789"
            assert connection.ask(Request("/whole")) == b"abcdef"
            assert connection.ask(Request("/empty")) == b""
            assert connection.ask(Request("/large")) == bytes(900_000)


def test_a_body_that_is_thrown_away_leaves_the_next_answer_whole(port: int) -> None:
    with Connection(port) as connection:
        assert connection.drain(Request("/large")) == 900_000
        assert connection.drain(Request("/chunked")) == 13
        assert connection.drain(Request("/whole")) == 6
        assert connection.ask(Request("/whole")) == b"abcdef"


def test_another_status_is_a_wrong_answer_unless_it_is_expected(port: int) -> None:
    with pytest.raises(WrongAnswer, match="404"):
        ask_once(port, Request("/missing"))
    assert ask_once(port, Request("/missing"), status=404) == b"no"


@pytest.mark.parametrize("way", ["ask", "drain"])
def test_an_answer_that_breaks_off_is_a_wrong_answer(port: int, way: str) -> None:
    with Connection(port) as connection, pytest.raises(WrongAnswer, match="breaks off"):
        getattr(connection, way)(Request("/broken"))


def test_every_request_of_a_crowd_is_answered_once(port: int) -> None:
    requests = [Request("/whole"), Request("/chunked")] * 20
    answers = stampede(port, requests, in_flight=8)
    bodies = sorted(answer.body() for answer in answers)
    assert bodies == [b"abc0123456789"] * 20 + [b"abcdef"] * 20
    assert all(answer.milliseconds > 0 for answer in answers)


def test_a_wrong_status_in_a_crowd_is_found(port: int) -> None:
    (answer,) = stampede(port, [Request("/missing")], in_flight=4)
    with pytest.raises(WrongAnswer, match="/missing"):
        answer.body()


def test_a_crowd_that_is_refused_says_so() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and not listening
        closed = taken.getsockname()[1]
        with pytest.raises(WrongAnswer, match=f"port {closed}"):
            stampede(closed, [Request("/whole")], in_flight=1)


def test_a_fetch_answer_is_taken_apart() -> None:
    answer = b"0011shallow-info\n0034shallow " + b"1" * 40 + b"0001000dpackfile\n"
    answer += b"000b\x02hello\n0008\x01PAC0006\x01K0000"
    assert FetchAnswer.parse(answer) == FetchAnswer(("1" * 40,), b"PACK")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"0013ERR not our ref0000", "not our ref"),
        (b"000dpackfile\n000a\x03oops\n0000", "oops"),
        (b"0008NAK\n0000", "not a whole answer"),
        (b"000dpackfile\n0012\x01PACK", "not a whole answer"),
    ],
)
def test_a_fetch_that_failed_is_told(answer: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        FetchAnswer.parse(answer)


def test_a_fetch_names_what_is_wanted_and_what_is_there() -> None:
    body = fetch("/x", "a" * 40, have="b" * 40, depth=1).body
    assert body.startswith(b"0012command=fetch\n")
    assert b"0032want " + b"a" * 40 in body
    assert b"0032have " + b"b" * 40 in body
    assert body.endswith(b"0009done\n0000")
