"""The one place that starts child processes.

uvloop's own spawn stalls the loop by milliseconds, more with every megabyte in use, so children are
started by `subprocess` in a small thread pool. Each gets an argv list, an environment of its own, a
time limit, and a bounded tail of stderr; each is killed and reaped whatever happens to its caller.
"""

import asyncio
import enum
import os
import signal
import socket
import subprocess
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

from mirror.errors import PackError

CHILDREN_MAX: Final = 32
"""More at once would only thrash; further ones wait for a place."""

READ_BYTES: Final = 256 * 1024
STDERR_BYTES_MAX: Final = 8 * 1024
KILL_WAIT_SECONDS: Final = 10.0
OOM_SCORE_ADJ_MAX: Final = 1000

SUBCOMMANDS: Final = frozenset(
    {"index-pack", "rev-list", "pack-objects", "multi-pack-index", "commit-graph"}
)

OnStderr = Callable[[bytes], None]
T = TypeVar("T")


class Priority(enum.IntEnum):
    """Whom a child leaves the processors to; the value is added to our own nice value."""

    USUAL = 0
    """Nobody: a refresh waits for it, and readers wait for the refresh."""

    BUILD = 10
    """A tenth of the weight of an event loop, so that polls are answered beside packs under build.
    The default 4 builds of two threads each leave a busy loop one of two processors; where there is
    only one, they get at least 30 % of it: readers of packs don't starve beside a flood of polls.
    Alone on a machine a build is as fast as ever."""

    BACKGROUND = 19
    """Everybody: it gets what nobody else wants of processors and disks."""


@dataclass(frozen=True, slots=True)
class _Child:
    """What is to be run: see `Spawner.run`."""

    argv: tuple[str | Path, ...]
    env: dict[str, str]
    stdin: bytes | Path
    priority: Priority


class Spawner:
    """Runs child processes. `close` ends those still running."""

    def __init__(self, *, inherited: int | None = None) -> None:
        """Be ready.

        Args:
            inherited: A descriptor that each child gets, and no other but its own three.
        """
        self._inherited = () if inherited is None else (inherited,)
        self._pool = ThreadPoolExecutor(max_workers=4, thread_name_prefix="spawn")
        # One for each child: however many won't end, there is a thread left to kill them.
        self._waits = ThreadPoolExecutor(max_workers=CHILDREN_MAX, thread_name_prefix="wait")
        self._places = asyncio.Semaphore(CHILDREN_MAX)
        self._running: set[subprocess.Popen[bytes]] = set()

    async def run(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str],
        stdin: bytes | Path = b"",
        timeout_seconds: float,
        on_stderr: OnStderr | None = None,
        stdout_bytes_max: int = 1 << 20,
        priority: Priority = Priority.USUAL,
    ) -> bytes:
        """Run a child to its end and return what it printed.

        Args:
            argv: The program and its arguments.
            env: The child's whole environment.
            stdin: What it reads: bytes, or a file.
            timeout_seconds: It is killed after that long.
            on_stderr: Called with each piece of its stderr.
            stdout_bytes_max: It is killed when it prints more.
            priority: Whom it leaves the processors to.

        Raises:
            PackError: It failed, took too long or printed too much; the message has its last words.
        """
        printed = bytearray()
        child = self.stream(
            argv,
            env=env,
            stdin=stdin,
            timeout_seconds=timeout_seconds,
            on_stderr=on_stderr,
            priority=priority,
        )
        async with aclosing(child):
            async for chunk in child:
                printed += chunk
                if len(printed) > stdout_bytes_max:
                    raise PackError(f"{_name(argv)} printed more than {stdout_bytes_max} bytes")
        return bytes(printed)

    async def stream(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str],
        stdin: bytes | Path = b"",
        timeout_seconds: float,
        on_stderr: OnStderr | None = None,
        priority: Priority = Priority.USUAL,
    ) -> AsyncGenerator[bytes, None]:
        """Run a child and yield its stdout; a reader that is slow holds the child up.

        Its arguments are those of `run`.

        Raises:
            PackError: It failed or took too long, after what it printed so far was yielded.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_seconds
        stderr = _Tail(on_stderr)
        reader = asyncio.StreamReader(limit=READ_BYTES)
        async with self._places, AsyncExitStack() as stack:
            process = await self._start(
                stack,
                _Child(tuple(argv), dict(env), stdin, priority),
                lambda: asyncio.StreamReaderProtocol(reader),
                stderr,
            )
            stack.push_async_callback(self._end_in_thread, process)
            while chunk := await _before(deadline, reader.read(READ_BYTES), argv):
                yield chunk
            await _before(deadline, stderr.ended.wait(), argv)
            code = await _before(deadline, loop.run_in_executor(self._waits, process.wait), argv)
            if code != 0:
                raise PackError(f"{_name(argv)} failed ({code}): {stderr.last_words()}")

    async def _end_in_thread(self, process: subprocess.Popen[bytes]) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.shield(loop.run_in_executor(self._pool, self._end, process))

    async def _start(
        self,
        stack: AsyncExitStack,
        child: "_Child",
        output: Callable[[], asyncio.BaseProtocol],
        errors: asyncio.BaseProtocol,
    ) -> subprocess.Popen[bytes]:
        """Start the child; `stack` gets what is to be closed on our side."""
        loop = asyncio.get_running_loop()
        with ExitStack() as unstarted:
            to_output = await _receiver(stack, unstarted, output)
            to_errors = await _receiver(stack, unstarted, lambda: errors)
            starting = loop.run_in_executor(self._pool, self._spawn, child, to_output, to_errors)
            # From here on the child's ends belong to the thread that starts it: closed under its
            # hands, their numbers could by then be another connection's.
            unstarted.pop_all()
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(self._end_unwanted)
            raise
        except OSError as error:
            raise PackError(f"can't start {child.argv[0]}: {error.strerror}") from error

    def _end_unwanted(self, starting: "asyncio.Future[subprocess.Popen[bytes]]") -> None:
        if starting.cancelled() or starting.exception() is not None:
            return
        process = starting.result()
        if process in self._running:  # not after `close`
            self._pool.submit(self._end, process)

    def _spawn(
        self, child: "_Child", output: socket.socket, errors: socket.socket
    ) -> subprocess.Popen[bytes]:
        """Start the child; in a thread.

        Its stdin is a file, so that nobody has to feed a pipe; one in memory, for the disk may be
        full, and readers are to get their packs all the same.
        """
        stdin = child.stdin
        with (
            output,
            errors,
            _in_memory() if isinstance(stdin, bytes) else stdin.open("rb") as source,
        ):
            if isinstance(stdin, bytes):
                source.write(stdin)
                source.seek(0)
            process = subprocess.Popen(
                child.argv,
                stdin=source,
                stdout=output.fileno(),
                stderr=errors.fileno(),
                env=child.env,
                cwd="/",
                start_new_session=True,
                pass_fds=self._inherited,
            )
        _goes_first(process.pid)
        if child.priority is not Priority.USUAL:
            _give_way(process.pid, child.priority)
        self._running.add(process)
        return process

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """Kill the child and its own children if need be, and reap it; in a thread."""
        if process.returncode is None:
            # Its group may live on without it; until it is reaped, the number is still its own.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(KILL_WAIT_SECONDS)
        self._running.discard(process)

    def _end_all(self) -> None:
        for process in list(self._running):
            self._end(process)

    def close(self) -> None:
        """Kill what still runs and stop the threads."""
        self._end_all()
        self._pool.shutdown()
        self._end_all()  # what was being started meanwhile
        self._waits.shutdown()


def _in_memory() -> BinaryIO:
    return os.fdopen(os.memfd_create("stdin"), "w+b")


def _goes_first(process_id: int) -> None:
    """Have a child killed, and not this process, where memory ends: its work is tried again.

    The kernel ends the largest process otherwise (proc_pid_oom_score_adj(5)), which among several
    children is this one. Where there is no such file, or it can't be written, all stays as it is.
    """
    with suppress(OSError):
        Path(f"/proc/{process_id}/oom_score_adj").write_text(str(OOM_SCORE_ADJ_MAX))


def _give_way(process_id: int, priority: Priority) -> None:
    """Lower the priority of a child, and of the threads and children that it starts.

    The kernel takes the disk priority from the scheduling policy where none was set (ioprio_set(2):
    SCHED_IDLE is idle there, too). A child has a session of its own, and where the kernel groups
    tasks by session (sched(7), autogroup), a nice value counts among those of one session only: all
    git's children together would have as much as the event loop. There the group gets it, too. What
    is forbidden is left; and of groups the kernel changes only ten a second.
    """
    own = os.getpriority(os.PRIO_PROCESS, 0)
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, process_id, min(own + priority, Priority.BACKGROUND))
    if priority is Priority.BACKGROUND:
        with suppress(OSError):
            os.sched_setscheduler(process_id, os.SCHED_IDLE, os.sched_param(0))
    with suppress(OSError):
        Path(f"/proc/{process_id}/autogroup").write_text(str(int(priority)))


class _Tail(asyncio.Protocol):
    """Keeps the end of a child's stderr."""

    def __init__(self, on_data: OnStderr | None) -> None:
        self._tail = bytearray()
        self._on_data = on_data
        self.ended = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self._tail += data
        del self._tail[:-STDERR_BYTES_MAX]
        if self._on_data is not None:
            self._on_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set()

    def last_words(self) -> str:
        """Return the last few lines, on one line."""
        lines = self._tail.decode("utf-8", "replace").replace("\r", "\n").split("\n")
        return "; ".join(line.strip() for line in lines if line.strip())[-1000:]


async def _receiver(
    stack: AsyncExitStack, unstarted: ExitStack, protocol: Callable[[], asyncio.BaseProtocol]
) -> socket.socket:
    """Return the end that a child writes into; what it writes goes to `protocol`.

    A socket pair and not a pipe: uvloop's pipe transports close their descriptor twice, and by the
    second time it may be another thread's.
    """
    near, far = socket.socketpair()
    unstarted.callback(far.close)
    near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, READ_BYTES)
    far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, READ_BYTES)
    loop = asyncio.get_running_loop()
    try:
        transport, _ = await loop.create_unix_connection(protocol, sock=near)
    except BaseException:
        near.close()
        raise
    stack.callback(transport.close)
    return far


async def _before(deadline: float, awaitable: Awaitable[T], argv: Sequence[str | Path]) -> T:
    try:
        async with asyncio.timeout_at(deadline):
            return await awaitable
    except TimeoutError:
        raise PackError(f"{_name(argv)} took too long and was ended") from None


def _name(argv: Sequence[str | Path]) -> str:
    """Return the program and its subcommand, for messages."""
    words = [Path(argv[0]).name]
    words += [word for word in map(str, argv[1:]) if word in SUBCOMMANDS]
    return " ".join(words[:2])
