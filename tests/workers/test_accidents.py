"""A worker, or the main process, ends or hangs, and nobody is served what is not so."""

import asyncio
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp.test_utils import make_mocked_request

from mirror.config import load
from mirror.demo.forge import Faults, HttpBackend
from mirror.errors import LocalError
from mirror.refresh.refresher import Trigger
from mirror.service import Service
from mirror.web.app import RETRY_AFTER_SECONDS, _answer
from mirror.workers import managed
from mirror.workers.frames import ChannelError, encode
from mirror.workers.messages import Announced, Envelope
from mirror.workers.supervisor import Supervisor
from tests.git_client import GitClient, Upstream
from tests.mirror_service import (
    NAME,
    UPLOAD_PACK_HEADERS,
    WAIT_SECONDS_MAX,
    MirrorService,
    configuration,
    mirroring,
    serving,
)
from tests.web.asking import fetch_v0
from tests.workers.connections import Connection, connect, deliver, delivery, one_to_each
from tests.workers.impatience import impatient_with

INFO_REFS = f"/{NAME}/info/refs?service=git-upload-pack"
STALE = "Git-Mirror-Stale"
BIG = hashlib.shake_256(b"noise").digest(8 << 20)
"""A file that a connection's buffers don't hold, and that nothing makes smaller."""

RESTARTS = "git_mirror_worker_restarts_total"


async def gone(pid: int) -> None:
    """Wait for the end of a process that another one than ours may have started."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, ended.set)
    try:
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def restarted(supervisor: Supervisor, killed: int, count: int = 2) -> list[int]:
    """Wait until another worker serves in the place of one; returns all there are."""
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        while killed in (pids := supervisor.pids) or len(pids) < count:
            await supervisor.exposition()  # asks those that are there: no busy wait
    return pids


async def test_a_killed_worker_breaks_off_its_connections_at_most_and_is_back_up_to_date(
    mirror: MirrorService, supervisor: Supervisor, upstream: Upstream
) -> None:
    broken: list[Exception] = []
    rounds = 0
    stop = asyncio.Event()

    async def poll() -> None:
        nonlocal rounds
        while not stop.is_set():
            try:
                connection = await connect(mirror.service.url)
                try:
                    answer = await connection.get(INFO_REFS)
                finally:
                    await connection.close()
            except (ConnectionError, asyncio.IncompleteReadError) as error:
                broken.append(error)
                assert (await mirror.info_refs()).status == 200  # the next try works
            else:
                assert answer.status == 200
                rounds += 1

    async with asyncio.TaskGroup() as tasks:
        for _ in range(8):
            tasks.create_task(poll())
        victim = supervisor.pids[0]
        os.kill(victim, signal.SIGKILL)
        upstream.commit()
        await mirror.announce(upstream)
        pids = await restarted(supervisor, victim)
        stop.set()
    assert rounds
    await mirror.caught_up(upstream)
    async with one_to_each(mirror.service.url, pids) as workers:
        for one in workers.values():
            assert upstream.oid().encode() in (await one.get(INFO_REFS)).body
    assert await mirror.metric(RESTARTS) == 1


async def test_what_a_killed_worker_had_counted_when_last_asked_stays_counted(
    mirror: MirrorService, supervisor: Supervisor, workers: dict[int, Connection]
) -> None:
    for one in workers.values():
        assert (await one.get(INFO_REFS)).status == 200

    async def counted() -> float:
        labels = {"operation": "advertise", "outcome": "ok"}
        return await mirror.metric("git_mirror_request_seconds_count", **labels) or 0.0

    before = await counted()
    victim = next(iter(workers))
    os.kill(victim, signal.SIGKILL)
    await restarted(supervisor, victim)
    assert await counted() == before


async def test_a_worker_that_hangs_is_dead_before_a_webhook_is_accepted(
    mirror: MirrorService,
    supervisor: Supervisor,
    workers: dict[int, Connection],
    upstream: Upstream,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (hung, _), (_, accepting) = workers.items()
    impatient_with(hung, monkeypatch)
    os.kill(hung, signal.SIGSTOP)
    upstream.commit()
    assert await deliver(accepting, *delivery(mirror, upstream)) == "accepted"
    assert not Path(f"/proc/{hung}").exists()
    assert len(await restarted(supervisor, hung)) == 2


async def test_a_refresh_that_brings_nothing_finds_a_worker_that_hangs(
    mirror: MirrorService, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    hung = supervisor.pids[0]
    impatient_with(hung, monkeypatch)
    os.kill(hung, signal.SIGSTOP)
    await mirror.hosted().refresher.request(Trigger.MANUAL)
    assert not Path(f"/proc/{hung}").exists()
    assert len(await restarted(supervisor, hung)) == 2


async def test_metrics_do_not_wait_for_a_worker_that_hangs(
    supervisor: Supervisor, workers: dict[int, Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    (hung, _), (_, asked) = workers.items()
    before = (await asked.get("/metrics")).text
    monkeypatch.setattr(managed, "COUNTS_SECONDS_MAX", 0.05)
    os.kill(hung, signal.SIGSTOP)
    try:
        after = (await asked.get("/metrics")).text
    finally:
        os.kill(hung, signal.SIGCONT)
    assert hung in supervisor.pids
    assert "git_mirror_workers 2.0" in before
    assert "git_mirror_workers 2.0" in after


async def test_a_new_worker_knows_what_was_announced_while_there_was_none_in_its_place(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    async with mirroring(forge, tmp_path, workers=2, defaults="hold: 0s") as mirror:
        supervisor = mirror.service.supervisor
        assert supervisor is not None
        async with one_to_each(mirror.service.url, supervisor.pids) as workers:
            (victim, _), (_, accepting) = workers.items()
            stall = asyncio.Event()
            forge.faults = Faults(stall=stall)
            upstream.commit()
            os.kill(victim, signal.SIGKILL)
            assert await deliver(accepting, *delivery(mirror, upstream)) == "accepted"
        pids = await restarted(supervisor, victim)
        async with one_to_each(mirror.service.url, pids) as workers:
            for one in workers.values():
                assert STALE in (await one.get(INFO_REFS)).headers
            stall.set()
            await mirror.caught_up(upstream)
            for one in workers.values():
                answer = await one.get(INFO_REFS)
                assert upstream.oid().encode() in answer.body
                assert STALE not in answer.headers


async def test_a_worker_that_gets_garbage_is_replaced(
    mirror: MirrorService, supervisor: Supervisor
) -> None:
    victim = supervisor._workers[1]
    assert victim.link._transport is not None
    victim.link._transport.write(b"GET / HTTP/1.1\r\n\r\n")
    await restarted(supervisor, victim.process.pid)
    assert victim.process.exit_code == 1
    assert (await mirror.info_refs()).status == 200


async def test_a_worker_that_breaks_on_what_it_is_told_is_replaced(
    mirror: MirrorService, supervisor: Supervisor, upstream: Upstream
) -> None:
    victim = supervisor._workers[1]
    victim.link.tell(Announced("acme/unheard-of", 1))
    await restarted(supervisor, victim.process.pid)
    assert victim.process.exit_code == 1
    upstream.commit()
    await mirror.announce(upstream)
    await mirror.caught_up(upstream)


async def test_a_worker_that_is_asked_to_end_finishes_its_answers_and_is_replaced(
    mirror: MirrorService,
    supervisor: Supervisor,
    workers: dict[int, Connection],
    upstream: Upstream,
) -> None:
    upstream.commit(files={"big.bin": BIG})
    await mirror.announce(upstream)
    await mirror.caught_up(upstream)
    pid, one = next(iter(workers.items()))
    end = await begin_fetch(one, upstream)
    os.kill(pid, signal.SIGTERM)
    await end_fetch(one, end)
    await restarted(supervisor, pid)


async def begin_fetch(connection: Connection, upstream: Upstream, name: str = NAME) -> bytes:
    """Ask for everything, and take only the beginning of the answer; returns how it is to end."""
    body = fetch_v0(upstream.oid())
    connection.send("POST", f"/{name}/git-upload-pack", body=body, headers=UPLOAD_PACK_HEADERS)
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        head = await connection.reader.readuntil(b"PACK")
    return b"0000\r\n0\r\n\r\n" if b"chunked" in head else b"0000"


async def end_fetch(connection: Connection, end: bytes) -> None:
    """Take the rest of it."""
    last = b""
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        while not last.endswith(end):
            piece = await connection.reader.read(1 << 20)
            assert piece, f"the answer broke off after {last!r}"
            last = (last + piece)[-100:]


async def test_a_service_whose_workers_do_not_start_does_not_start(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = configuration(forge, tmp_path, names=[upstream.name], workers=2)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", "/bin/false")
        with pytest.raises(LocalError, match="did not start"):
            await Service(load(file)).__aenter__()
    async with serving(file, forge) as mirror:  # nothing is left in its way
        await mirror.mirrored()


@pytest.mark.parametrize(
    "said",
    [b"", b"garbage, and no frame", encode(Envelope(1, Announced("a/b", 1)))],
    ids=["nothing", "garbage", "a message too early"],
)
async def test_a_process_without_a_setup_ends_with_its_channel(said: bytes) -> None:
    near, far = socket.socketpair()
    with far:
        command = [sys.executable, "-m", "mirror", "worker", "--channel", str(far.fileno())]
        process = await asyncio.to_thread(
            subprocess.Popen, command, pass_fds=[far.fileno()], stderr=subprocess.PIPE
        )
    with near, process:
        near.send(said) if said else near.shutdown(socket.SHUT_WR)
        _, told = await asyncio.to_thread(process.communicate, timeout=WAIT_SECONDS_MAX)
    assert process.returncode == 1
    assert (b"channel_broke" in told) == bool(said)


# `git-mirror serve` as a process of its own, with its workers.


@dataclass
class Started:
    """A running `git-mirror serve`: where it is, and every line it has logged."""

    process: "subprocess.Popen[bytes]"
    url: str
    lines: list[dict[str, object]]

    def pids(self) -> list[int]:
        return [int(str(one["pid"])) for one in self.lines if one["event"] == "worker_serves"]

    def read_on(self, until: str = "") -> None:
        """Read log lines until an event, or to the end; blocking."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(json.loads(line))
            if self.lines[-1]["event"] == until:
                break


@asynccontextmanager
async def started(file: Path) -> AsyncIterator[Started]:
    command = [sys.executable, "-m", "mirror", "serve", "--config", str(file)]
    process = await asyncio.to_thread(subprocess.Popen, command, stderr=subprocess.PIPE)
    try:
        service = Started(process, "", [])
        await asyncio.to_thread(service.read_on, "serving")
        service.url = str(service.lines[-1]["url"])
        yield service
    finally:
        process.kill()
        await asyncio.to_thread(process.communicate)


@pytest.fixture
def file(forge: HttpBackend, upstream: Upstream, tmp_path: Path) -> Path:
    upstream.commit(files={"big.bin": BIG})
    return configuration(forge, tmp_path, names=[upstream.name], workers=2)


async def sync(file: Path) -> None:
    """Run `git-mirror sync`: on its return every worker has what the upstream has."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "mirror", "sync", "--config", str(file), NAME],
        capture_output=True,
        timeout=WAIT_SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stderr


async def test_no_worker_outlives_a_killed_main_process(file: Path, upstream: Upstream) -> None:
    async with started(file) as service:
        await sync(file)
        async with one_to_each(service.url, service.pids()) as workers:
            for one in workers.values():
                await begin_fetch(one, upstream)  # at work, with children of their own
            service.process.kill()
            for pid in workers:
                await gone(pid)
            children = [one for one in _processes() if str(file.parent) in _command(one)]
            assert children == []


async def test_what_only_a_killed_main_process_could_answer_is_to_be_asked_again(
    file: Path,
) -> None:
    async with started(file) as service, one_to_each(service.url, service.pids()) as workers:
        os.kill(service.process.pid, signal.SIGSTOP)
        for one in workers.values():
            one.send("GET", "/metrics")
        service.process.kill()
        for one in workers.values():
            try:
                answer = await one.answer()
            except (ConnectionError, asyncio.IncompleteReadError):
                continue  # it ended sooner
            assert answer.status == 503, answer
            assert int(answer.headers["Retry-After"]) > 0


def test_a_broken_channel_is_answered_as_what_passes() -> None:
    request = make_mocked_request("GET", "/metrics")
    answer = _answer(request, ChannelError("the other process is gone"))
    assert (answer.status, answer.headers["Retry-After"]) == (503, str(RETRY_AFTER_SECONDS))


def _processes() -> list[int]:
    return [int(one.name) for one in Path("/proc").iterdir() if one.name.isdigit()]


def _command(pid: int) -> str:
    """Return a process's arguments and the repository it works on."""
    found = b""
    for part in ("cmdline", "environ"):
        try:
            found += Path(f"/proc/{pid}/{part}").read_bytes()
        except OSError:
            continue
    return found.decode(errors="replace")


async def test_sigterm_ends_all_processes_when_their_answers_are_given(
    file: Path, upstream: Upstream, git_client: GitClient
) -> None:
    async with started(file) as service:
        await sync(file)
        clone = await git_client.clone(f"{service.url}/{NAME}")
        upstream.commit()
        await sync(file)
        await git_client.fetch(clone)
        assert await git_client.rev_parse(clone, "origin/main") == upstream.oid()
        pids = service.pids()
        async with one_to_each(service.url, pids) as workers:
            ends = [await begin_fetch(one, upstream) for one in workers.values()]
            service.process.send_signal(signal.SIGTERM)
            await asyncio.gather(*map(end_fetch, workers.values(), ends))
            assert await asyncio.to_thread(service.process.wait, WAIT_SECONDS_MAX) == 0
        for pid in pids:
            await gone(pid)
        await asyncio.to_thread(service.read_on)
        by_workers = {line.get("worker") for line in service.lines if line["event"] == "served"}
        assert by_workers == {1, 2}
        events = {str(line["event"]) for line in service.lines}
        assert not events & {"worker_ended", "channel_broke", "worker_does_not_answer"}
