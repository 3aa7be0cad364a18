"""Child processes: whatever becomes of their callers, none is left and nothing stays open."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from mirror.errors import PackError
from mirror.repository.packing.spawner import (
    CHILDREN_MAX,
    STDERR_BYTES_MAX,
    Priority,
    Spawner,
)
from tests.repository.packing.processes import children, open_files, settle

SH = "/bin/sh"
ENV = {"PATH": os.defpath, "LC_ALL": "C"}
LONG = 60.0
NICE_MAX = 19


@pytest.fixture
async def spawner() -> AsyncIterator[Spawner]:
    running = Spawner()
    yield running
    running.close()


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    """No child, no descriptor, no task: after every single test."""
    first = Spawner()  # uvloop opens something of its own with a loop's first connection
    await sh(first, ":")
    first.close()
    await settle()
    files, processes, tasks = len(open_files()), children(), len(asyncio.all_tasks())
    yield
    await settle()
    # Less there may be: the collector came by what an earlier test had left.
    assert children() <= processes
    assert len(open_files()) <= files
    assert len(asyncio.all_tasks()) <= tasks


async def sh(spawner: Spawner, script: str, **options: Any) -> bytes:
    arguments: dict[str, Any] = {"env": ENV, "timeout_seconds": LONG} | options
    return await spawner.run([SH, "-c", script], **arguments)


def is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(b")")[2].split()[0] not in {b"Z", b"X"}


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that the kernel does in its own time."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - nobody could set an event
            await asyncio.sleep(0)


async def test_what_a_child_prints_is_returned(spawner: Spawner) -> None:
    assert await sh(spawner, "echo one; echo two") == b"one\ntwo\n"


async def test_a_child_reads_bytes_or_a_file(spawner: Spawner, tmp_path: Path) -> None:
    assert await sh(spawner, "cat") == b""
    assert await sh(spawner, "cat", stdin=b"in\0put") == b"in\0put"
    (tmp_path / "input").write_bytes(b"x" * 300_000)
    assert await sh(spawner, "wc -c", stdin=tmp_path / "input") == b"300000\n"


async def test_a_child_sees_its_own_environment_and_nothing_of_ours(
    spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hush")
    printed = await spawner.run(["/usr/bin/env"], env={"A": "1"}, timeout_seconds=LONG)
    assert printed == b"A=1\n"
    assert await sh(spawner, "pwd") == b"/\n"


async def test_a_child_inherits_no_descriptors(spawner: Spawner, tmp_path: Path) -> None:
    with (tmp_path / "ours").open("wb") as file:
        os.set_inheritable(file.fileno(), True)
        listed = await sh(spawner, "ls /proc/self/fd")
    assert len(listed.split()) == 4  # its three, and the directory that ls reads


async def test_a_child_inherits_the_one_descriptor_that_it_is_to_have(tmp_path: Path) -> None:
    with (tmp_path / "ours").open("wb") as file:
        running = Spawner(inherited=file.fileno())
        try:
            listed = await sh(running, "ls -l /proc/self/fd")
        finally:
            running.close()
    assert str(tmp_path / "ours").encode() in listed


async def test_output_comes_as_it_is_printed(spawner: Spawner, tmp_path: Path) -> None:
    """The child waits for the reader to have seen its first words."""
    seen = tmp_path / "seen"
    os.mkfifo(seen)
    stream = spawner.stream(
        [SH, "-c", f"echo first; read line < {seen}; echo $line"], env=ENV, timeout_seconds=LONG
    )
    async with aclosing(stream):
        assert await anext(stream) == b"first\n"
        await asyncio.to_thread(seen.write_bytes, b"second\n")
        assert await anext(stream) == b"second\n"
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


@pytest.mark.parametrize("priority", list(Priority))
async def test_a_child_leaves_the_processors_to_whom_it_should(
    spawner: Spawner, tmp_path: Path, priority: Priority
) -> None:
    """So do those that it starts, and the group where the kernel groups tasks by session."""
    seen = tmp_path / "seen"
    os.mkfifo(seen)
    grouped = Path("/proc/self/autogroup").exists()
    script = f"echo; read line < {seen}; cat /proc/self/stat"
    script += "; cat /proc/self/autogroup" if grouped else ""
    stream = spawner.stream([SH, "-c", script], env=ENV, timeout_seconds=LONG, priority=priority)
    async with aclosing(stream):
        await anext(stream)  # it was started, and its priority set
        await asyncio.to_thread(seen.write_bytes, b"\n")
        stat, _, group = b"".join([piece async for piece in stream]).partition(b"\n")
    after_name = stat.rpartition(b")")[2].split()
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert int(after_name[16]) == min(own + priority, NICE_MAX)
    is_idle = int(after_name[38]) == os.SCHED_IDLE
    assert is_idle == (priority is Priority.BACKGROUND)
    if grouped and os.geteuid() == 0:  # for others the kernel changes ten a second
        assert group.split()[-1] == b"%d" % priority


async def test_a_slow_reader_holds_the_child_up(spawner: Spawner) -> None:
    """The child may be ahead by what sockets and buffers hold, and not by 64 MB."""
    count = f"{sys.executable} -c \"import os,sys; [sys.stderr.write('x') and sys.stderr.flush() or"
    count += ' os.write(1, bytes(65536)) for _ in range(1024)]"'
    pieces: list[bytes] = []
    stream = spawner.stream(
        [SH, "-c", count], env=ENV, timeout_seconds=LONG, on_stderr=pieces.append
    )
    async with aclosing(stream):
        await anext(stream)
        for _ in range(200):
            await asyncio.sleep(0)
        assert len(b"".join(pieces)) < 100


async def test_a_child_that_fails_says_why(spawner: Spawner) -> None:
    with pytest.raises(PackError, match=r"sh failed \(3\): first; last words") as caught:
        await sh(spawner, "echo out; echo first >&2; echo; echo '  last words' >&2; exit 3")
    assert "out" not in str(caught.value).replace("without", "")


async def test_a_child_that_is_killed_is_an_error(spawner: Spawner) -> None:
    with pytest.raises(PackError, match=r"failed \(-9\)"):
        await sh(spawner, "kill -9 $$")


async def test_only_the_end_of_stderr_is_kept(spawner: Spawner) -> None:
    seen = 0

    def count(data: bytes) -> None:
        nonlocal seen
        seen += len(data)

    with pytest.raises(PackError) as caught:
        await sh(
            spawner,
            "yes 'much ado' | head -c 1000000 >&2; echo the end >&2; exit 1",
            on_stderr=count,
        )
    assert str(caught.value).endswith("the end")
    assert len(str(caught.value)) < 1100
    assert seen > 1_000_000 > STDERR_BYTES_MAX


async def test_who_prints_too_much_is_stopped(spawner: Spawner) -> None:
    with pytest.raises(PackError, match="printed more than 1000 bytes"):
        await sh(spawner, "yes", stdout_bytes_max=1000)
    assert await sh(spawner, "head -c 1000 /dev/zero", stdout_bytes_max=1000) == bytes(1000)


async def test_a_program_that_is_not_there_is_an_error(spawner: Spawner, tmp_path: Path) -> None:
    with pytest.raises(PackError, match="can't start /nowhere/git: No such file"):
        await spawner.run(["/nowhere/git"], env=ENV, timeout_seconds=LONG)
    with pytest.raises(PackError, match="Permission denied"):
        await spawner.run([tmp_path], env=ENV, timeout_seconds=LONG)
    with pytest.raises(PackError, match="No such file"):
        await sh(spawner, "cat", stdin=tmp_path / "nowhere")


@pytest.mark.parametrize(
    "script",
    [
        pytest.param("sleep 1000 & echo $! $$; wait", id="with a child of its own"),
        pytest.param("trap '' TERM INT HUP; echo $$; while :; do sleep 1; done", id="stubborn"),
        pytest.param("echo $$; exec >&- 2>&-; sleep 1000", id="silent"),
        pytest.param("(sleep 1000 & echo $!; wait) & echo $$; exec sleep 1000", id="grandchild"),
        pytest.param("sleep 1000 & echo $!", id="gone before its child"),
    ],
)
async def test_who_takes_too_long_is_killed_with_all_its_children(
    spawner: Spawner, script: str
) -> None:
    pids: list[int] = []
    for seconds in (1.0, 5.0, 20.0):  # it takes a moment to begin, on a busy machine a long one
        printed = bytearray()
        stream = spawner.stream([SH, "-c", script], env=ENV, timeout_seconds=seconds)
        with pytest.raises(PackError, match="took too long"):
            async with aclosing(stream):
                async for chunk in stream:
                    printed += chunk
        if pids := [int(word) for word in printed.split()]:
            break
    assert pids
    await until(lambda: not any(map(is_running, pids)))


async def test_a_reader_that_leaves_ends_the_child(spawner: Spawner) -> None:
    for _ in range(3):
        stream = spawner.stream(
            [SH, "-c", "sleep 1000 & echo $! $$; wait"], env=ENV, timeout_seconds=LONG
        )
        pids = [int(word) for word in (await anext(stream)).split()]
        assert all(map(is_running, pids))
        await stream.aclose()
        await until(lambda pids=pids: not any(map(is_running, pids)))  # type: ignore[misc]


async def test_a_caller_that_is_cancelled_leaves_no_child(spawner: Spawner, tmp_path: Path) -> None:
    started = tmp_path / "started"
    task = asyncio.create_task(sh(spawner, f"echo $$ > {started}; sleep 1000"))
    await until(lambda: started.exists() and bool(started.read_bytes()))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not is_running(int(started.read_bytes())))


async def test_a_caller_may_be_cancelled_at_any_step(spawner: Spawner) -> None:
    """Before the child is started, while a thread starts it, while it runs, as it ends."""
    before = children()
    for steps in range(40):
        task = asyncio.create_task(sh(spawner, "echo x; echo y >&2"))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    await until(lambda: children() == before)


class SlowStart:
    """Children that are being started until they are let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        self._popen = subprocess.Popen
        monkeypatch.setattr(subprocess, "Popen", self._start)

    def _start(self, *args: Any, **kwargs: Any) -> "subprocess.Popen[bytes]":
        self.begun.set()
        assert self.go.wait(60)
        return self._popen(*args, **kwargs)


@pytest.fixture
def slow_start(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowStart]:
    slow = SlowStart(monkeypatch)
    yield slow
    slow.go.set()


async def test_who_is_cancelled_while_a_thread_starts_the_child_closes_nothing_under_its_hands(
    spawner: Spawner, slow_start: SlowStart
) -> None:
    """The number of a closed socket may be another connection's the next moment."""
    before = children()
    task = asyncio.create_task(sh(spawner, "echo to nobody; sleep 1000"))
    await until(slow_start.begun.is_set)
    count = len(open_files())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await settle()
    # Our two ends are closed; the child's two, and its stdin, are the thread's.
    assert len(open_files()) == count - 2
    slow_start.go.set()
    await until(lambda: not spawner._running and children() == before)


async def test_a_spawner_that_is_closed_while_a_child_is_started_ends_that_too(
    slow_start: SlowStart,
) -> None:
    before = children()
    spawner = Spawner()
    task = asyncio.create_task(sh(spawner, "sleep 1000"))
    await until(slow_start.begun.is_set)
    task.cancel()
    await asyncio.wait([task])
    closing = asyncio.create_task(asyncio.to_thread(spawner.close))
    await asyncio.sleep(0)
    slow_start.go.set()
    await closing
    assert children() == before


async def test_closing_ends_what_still_runs() -> None:
    before = children()
    spawner = Spawner()
    streams = [
        spawner.stream([SH, "-c", "echo $$; sleep 1000"], env=ENV, timeout_seconds=LONG)
        for _ in range(3)
    ]
    pids = [int(await anext(stream)) for stream in streams]
    spawner.close()
    assert children() == before
    assert not any(map(is_running, pids))
    for stream in streams:
        with pytest.raises((PackError, RuntimeError)):
            await anext(stream)


async def test_only_so_many_children_run_at_once(spawner: Spawner, tmp_path: Path) -> None:
    """The others wait for a place; each that ends makes room for one."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    opened = os.open(gate, os.O_RDWR)
    before = len(children())
    up: list[bytes] = []
    total = CHILDREN_MAX + 8
    script = f"echo up >&2; read line < {gate}; echo done"
    tasks = [asyncio.create_task(sh(spawner, script, on_stderr=up.append)) for _ in range(total)]
    await until(lambda: len(up) == CHILDREN_MAX)
    await settle()
    assert len(up) == len(children()) - before == CHILDREN_MAX
    os.write(opened, b"\n" * total)
    assert await asyncio.gather(*tasks) == [b"done\n"] * total
    assert len(up) == total
    os.close(opened)


async def test_children_that_will_not_end_do_not_keep_others_from_being_killed(
    spawner: Spawner,
) -> None:
    """They have closed their output and live on; each is waited for in a thread."""
    calls = [
        spawner.run([SH, "-c", "exec >&- 2>&-; sleep 1000"], env=ENV, timeout_seconds=0.5)
        for _ in range(CHILDREN_MAX)
    ]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(result, PackError) for result in results)


async def test_many_children_leave_nothing_open(spawner: Spawner) -> None:
    await sh(spawner, ":")
    await settle()
    count = len(open_files())
    for _ in range(3):
        await asyncio.gather(*(sh(spawner, "echo x; echo y >&2") for _ in range(20)))
    await settle()
    assert len(open_files()) == count


@pytest.mark.skipif(not Path("/proc/self/oom_score_adj").exists(), reason="Linux has that file")
async def test_the_kernel_ends_a_child_before_its_parent_where_memory_ends(
    spawner: Spawner,
) -> None:
    file = Path("/proc/self/oom_score_adj")
    ours = file.read_text()
    # The child's own would be this process's, and stay so, were it not raised.
    printed = await sh(spawner, f"until grep -x 1000 {file}; do :; done")
    assert printed == b"1000\n"
    assert file.read_text() == ours
