"""Sends streams to a service, each followed by a good poll over another connection, and judges.

What must hold: what comes back are answers as HTTP has them, of a status that is foreseen; who has
no token learns nothing; a connection is answered or closed in time; the poll is right.
"""

import asyncio
import contextlib
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.httpfuzz.answers import Answer, WrongAnswer, read_answers
from tests.httpfuzz.estate import AT, HIDDEN, OPEN, PRIVATE, PULLED, STRICT, Known, poll_v0, poll_v2
from tests.httpfuzz.streams import End, Stream

QUIET_SECONDS: Final = 0.25
"""A stream after which nothing comes for so long is over: it waits for more than was sent."""

CLOSED_SECONDS_MAX: Final = 20.0
"""From the end of what was sent, or of the last byte that came, to the end of the connection. A
stale mirror holds for 5, and this machine may be busy."""

SILENT_SECONDS_MAX: Final = 130.0
"""How long a silent client is kept: 75 for the next request, or 30 for a head, and looks of 5."""

ANSWERS_BYTES_MAX: Final = 8 << 20
POLL_SECONDS_MAX: Final = 20.0


@dataclass(slots=True)
class Finding:
    """A stream, and what was wrong with what came of it."""

    stream: Stream
    wrong: str

    def keep(self, directory: Path) -> Path:
        """Write the stream into a directory, so that it can be sent again; returns the file."""
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / f"{self.stream.name.replace('/', '-')}.json"
        kept = {
            "wrong": self.wrong,
            "end": self.stream.end.name,
            "knows_token": self.stream.knows_token,
            "pieces": [one.decode("latin-1") for one in self.stream.pieces],
        }
        file.write_text(json.dumps(kept, indent=1) + "\n")
        return file


def kept_stream(file: Path) -> Stream:
    """Read a stream that was kept."""
    kept = json.loads(file.read_text())
    pieces = tuple(one.encode("latin-1") for one in kept["pieces"])
    return Stream(file.name, pieces, End[kept["end"]], kept["knows_token"])


@dataclass(slots=True)
class Tally:
    """What was sent, and what came of it.

    Attributes:
        statuses: How many answers of each status.
        ends: How the connections ended.
        polls: How many good polls were answered rightly.
    """

    streams: int = 0
    sent_bytes: int = 0
    polls: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """Tell it in words."""
        yield (
            f"{self.streams} streams of {self.sent_bytes:,} bytes, each followed by a poll;"
            f" {self.polls} polls right; {len(self.findings)} findings"
        )
        answers = ", ".join(f"{status}: {count}" for status, count in sorted(self.statuses.items()))
        yield f"{self.statuses.total()} answers: {answers}"
        yield "ends: " + ", ".join(f"{end}: {count}" for end, count in sorted(self.ends.items()))


@dataclass(frozen=True, slots=True)
class Poll:
    """A good request, and the body that is right."""

    request: bytes
    body: bytes


class Pollster:
    """Asks good polls, the next over a connection kept alive, the one after over a new one."""

    def __init__(self, host: str, port: int, polls: list[Poll]) -> None:
        self._host, self._port = host, port
        self._polls = itertools.cycle(polls)
        self._fresh = itertools.cycle((False, True, False, False))
        self._kept: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self) -> None:
        """Ask the next.

        Raises:
            WrongAnswer: It is answered wrongly, or not in time.
        """
        poll = next(self._polls)
        try:
            async with asyncio.timeout(POLL_SECONDS_MAX):
                answer = await self._asked(poll.request)
        except (OSError, asyncio.IncompleteReadError) as error:
            raise WrongAnswer(f"no answer to a good poll: {error!r}") from error
        if answer.status != 200 or answer.body != poll.body:
            raise WrongAnswer(f"a good poll: {answer.status} {answer.body[:200]!r}")

    async def _asked(self, request: bytes) -> Answer:
        if next(self._fresh) or self._kept is None:
            self.close()
            self._kept = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._kept
        writer.write(request)
        return await one_answer(reader)

    def close(self) -> None:
        """End the connection."""
        if self._kept is not None:
            self._kept[1].transport.abort()
            self._kept = None


async def one_answer(reader: asyncio.StreamReader) -> Answer:
    """Read one answer with a length."""
    head = await reader.readuntil(b"\r\n\r\n")
    (answer,) = read_answers(head)
    length = int(answer.headers.get(b"content-length", b"0"))
    return Answer(answer.status, answer.headers, await reader.readexactly(length))


class Sender:
    """Sends streams, and keeps the tally."""

    def __init__(self, host: str, port: int, known: Known, polls: list[Poll]) -> None:
        self.tally = Tally()
        self._host, self._port = host, port
        self._secrets = [one.encode() for one in known.secrets]
        self._polls = polls

    async def send_all(self, streams: Iterable[Stream], *, at_once: int = 1) -> None:
        """Send streams, so many at once, each with its poll; silent ones wait beside them."""
        numbered = iter(streams)
        silent: set[asyncio.Task[None]] = set()

        async def send_some() -> None:
            pollster = Pollster(self._host, self._port, self._polls)
            try:
                for stream in numbered:
                    if stream.end is End.SILENT:
                        silent.add(asyncio.create_task(self._judge(stream, None)))
                    else:
                        await self._judge(stream, pollster)
            finally:
                pollster.close()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(at_once):
                    group.create_task(send_some())
        finally:
            await asyncio.gather(*silent)

    async def _judge(self, stream: Stream, pollster: Pollster | None) -> None:
        tally = self.tally
        tally.streams += 1
        tally.sent_bytes += sum(map(len, stream.pieces))
        try:
            self._check(stream, await self._sent(stream))
            if pollster is not None:
                await pollster.ask()
                tally.polls += 1
        except (WrongAnswer, TimeoutError, OSError) as error:
            tally.findings.append(Finding(stream, f"{type(error).__name__}: {error}"))

    def _check(self, stream: Stream, data: bytes) -> None:
        seen = data
        for answer in read_answers(data):
            self.tally.statuses[answer.status] += 1
            if answer.is_whole:
                seen += answer.content
        sent = b"".join(stream.pieces)
        for secret in self._secrets:
            # aiohttp tells a client which line it could not read.
            if secret in seen and secret not in sent:
                raise WrongAnswer(f"an answer with {secret!r} in it")
        if not stream.knows_token and HIDDEN.encode() in seen:
            raise WrongAnswer("what only readers may see")

    async def _sent(self, stream: Stream) -> bytes:
        """Send a stream; returns all that came."""
        async with _connected(self._host, self._port) as (reader, writer):
            with contextlib.suppress(ConnectionError):
                for piece in stream.pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                if stream.end is End.RESET:
                    self.tally.ends["reset by us"] += 1
                    return b""
                if stream.end is End.SHUT:
                    writer.write_eof()
            return await self._read(stream, reader, writer)

    async def _read(
        self, stream: Stream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bytes:
        came = b""
        may_say_so = stream.end is End.READ
        patience = SILENT_SECONDS_MAX if stream.end is End.SILENT else CLOSED_SECONDS_MAX
        while len(came) < ANSWERS_BYTES_MAX:
            try:
                async with asyncio.timeout(QUIET_SECONDS if may_say_so else patience):
                    piece = await reader.read(1 << 16)
            except ConnectionError:
                self.tally.ends["reset"] += 1
                return came
            except TimeoutError:
                if not may_say_so:
                    raise TimeoutError(f"neither answered nor closed for {patience} s") from None
                may_say_so = False
                with contextlib.suppress(OSError, RuntimeError):
                    writer.write_eof()
                continue
            if not piece:
                is_quiet = stream.end is End.READ and not may_say_so
                self.tally.ends["closed after it was quiet" if is_quiet else "closed"] += 1
                return came
            came += piece
        self.tally.ends["read enough"] += 1
        return came


@asynccontextmanager
async def _connected(
    host: str, port: int
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def good_polls(host: str, port: int, known: Known) -> list[Poll]:
    """Ask each kind of poll once, before anything is wrong; returns them with what is right."""
    token = f"Authorization: Bearer {known.token}"
    requests = [
        poll_v0(OPEN),
        poll_v2(OPEN),
        poll_v2(PRIVATE, token),
        poll_v0(OPEN, "Git-Protocol: version=2"),
        poll_v0(STRICT),
        poll_v2(STRICT),
        poll_v0(PRIVATE, token),
        poll_v0(f"{AT}/{PULLED}"),
    ]
    polls = []
    for request in requests:
        async with _connected(host, port) as (reader, writer):
            writer.write(request)
            answer = await one_answer(reader)
            if answer.status != 200:
                raise WrongAnswer(f"before anything was wrong: {answer}")
            polls.append(Poll(request, answer.body))
    return polls


async def bundles_of(host: str, port: int, name: str) -> list[str]:
    """Return the paths of a repository's bundles; empty where there are none yet."""
    async with _connected(host, port) as (reader, writer):
        writer.write(f"GET /{name}/bundles/list HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        listing = (await one_answer(reader)).body.decode()
    uris = [line.partition("=")[2].strip() for line in listing.splitlines() if "uri" in line]
    return [f"/{name}/bundles/{one.rpartition('/')[2]}" for one in uris]
