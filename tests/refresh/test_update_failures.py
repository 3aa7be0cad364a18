"""A refresh that fails at any step leaves the mirror as it was, and the next one mends it."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mirror.demo.forge import Faults, ForgeRequest, HttpBackend
from mirror.errors import LocalError, MirrorError, PackError, UpstreamUnavailable
from mirror.refresh import staging
from mirror.repository.bare import BareRepository
from mirror.repository.packing.engine import PackEngine
from mirror.repository.quarantine import Quarantine
from tests.git_client import Upstream
from tests.refresh.bench import Bench
from tests.refresh.conftest import MakeBench
from tests.upstream.scripted import (
    Answer,
    advertisement,
    result,
    scripted,
    v2_capabilities,
    v2_listing,
    v2_pack,
)

NO_SPACE = OSError(28, "No space left on device")


@pytest.fixture
async def bench(upstream: Upstream, make_bench: MakeBench, engine: PackEngine) -> Bench:
    """A mirror that is up to date."""
    upstream.history(20)
    upstream.tag("v1")
    bench = make_bench(upstream, engine=engine)
    await bench.update()
    return bench


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


async def fails(bench: Bench, kind: type[MirrorError], message: str = ".") -> None:
    """Assert that a refresh fails and leaves every file as it was."""
    before, snapshot = bench.fingerprint(), bench.mirror.snapshot
    with pytest.raises(kind, match=message):
        await bench.update()
    assert bench.fingerprint() == before
    assert bench.mirror.snapshot is snapshot
    assert bench.mirror.progress is None
    assert not list((bench.path / "objects").glob("tmp_*"))
    bench.is_whole()


async def recovers(bench: Bench) -> None:
    await bench.update()
    bench.mirrors()


# --- what the upstream does wrong --------------------------------------------------------------


@pytest.mark.parametrize("is_v0", [False, True])
@pytest.mark.parametrize("cut", [0, 100, 5000, 50_000])
async def test_a_pack_cut_off_changes_nothing(
    bench: Bench, forge: HttpBackend, cut: int, is_v0: bool
) -> None:
    bench.upstream.commit(files={"noise.bin": os.urandom(200_000)})
    bench.remote.forget()
    forge.faults = Faults(cut_after_bytes=cut, only=ForgeRequest.is_fetch, force_protocol_v0=False)
    if is_v0:
        forge.faults = Faults(cut_after_bytes=cut, force_protocol_v0=True)
    await fails(bench, UpstreamUnavailable)
    forge.faults = Faults()
    await recovers(bench)


def pack_of(upstream: Upstream, *objects: str) -> bytes:
    """Return a pack of exactly these objects, connected or not."""
    name = upstream.git("pack-objects", "-q", "spare", stdin="".join(f"{o}\n" for o in objects))
    return (upstream.path / f"spare-{name}.pack").read_bytes()


def a_server_of(upstream: Upstream, tip: str, pack: bytes) -> Answer:
    async def answer(request: Any) -> Any:
        if request.method == "GET":
            return advertisement(v2_capabilities())
        if b"command=ls-refs" in await request.read():
            main = f"{tip} refs/heads/main".encode()
            return result(v2_listing(f"{tip} HEAD symref-target:refs/heads/main".encode(), main))
        return result(v2_pack(pack))

    return answer


def _bad_packs(upstream: Upstream, tip: str) -> dict[str, bytes]:
    commit, tree, blob = tip, upstream.oid(f"{tip}^{{tree}}"), upstream.oid(f"{tip}:new.txt")
    whole = pack_of(upstream, commit, tree, blob)
    return {
        "no blob": pack_of(upstream, commit, tree),
        "no tree": pack_of(upstream, commit, blob),
        "no commit": pack_of(upstream, tree, blob),
        "one bit flipped": whole[:60] + bytes([whole[60] ^ 1]) + whole[61:],
        "wrong checksum": whole[:-1] + bytes([whole[-1] ^ 1]),
        "cut off": whole[:-30],
        "garbage": b"what is this?" * 10,
        "another version": whole[:7] + b"\x04" + whole[8:],
        "more promised than sent": whole[:11] + b"\x09" + whole[12:],
    }


@pytest.mark.parametrize(
    "trouble",
    [
        "no blob",
        "no tree",
        "no commit",
        "one bit flipped",
        "wrong checksum",
        "cut off",
        "garbage",
        "another version",
        "more promised than sent",
    ],
)
async def test_a_pack_that_is_not_what_was_asked_for_is_not_taken(
    upstream: Upstream, make_bench: MakeBench, engine: PackEngine, trouble: str
) -> None:
    bench = make_bench(upstream, engine=engine)
    await bench.update()
    tip = upstream.commit(files={"new.txt": "new"})
    bad = _bad_packs(upstream, tip)[trouble]
    async with scripted(a_server_of(upstream, tip, bad)) as server:
        real, bench.remote = bench.remote, bench.remote_to(server.repository_url)
        await fails(bench, PackError)
    bench.remote = real
    await recovers(bench)


async def test_no_pack_at_all_is_the_upstreams_fault(
    upstream: Upstream, make_bench: MakeBench
) -> None:
    tip = upstream.oid()
    async with scripted(a_server_of(upstream, tip, b"")) as server:
        bench = make_bench(upstream, url=server.repository_url)
        with pytest.raises(UpstreamUnavailable, match="sent no pack for what it had listed"):
            await bench.update()
    assert not bench.path.exists()
    assert not list(bench.staging.iterdir())


# --- what this machine does wrong --------------------------------------------------------------


async def test_a_full_disk_while_receiving_changes_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.upstream.commit()
    with monkeypatch.context() as patch:
        original = Quarantine.__init__

        def onto_a_full_disk(self: Quarantine, *args: Any) -> None:
            original(self, *args)
            self.received = Path("/dev/full")

        patch.setattr(Quarantine, "__init__", onto_a_full_disk)
        await fails(bench, LocalError, "No space left on device")
    await recovers(bench)


@pytest.mark.parametrize("step", ["index_pack", "check_connected"])
async def test_an_engine_that_fails_changes_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    bench.upstream.commit()
    with monkeypatch.context() as patch:
        patch.setattr(bench.engine, step, raising(PackError("out of order")))
        await fails(bench, PackError, "out of order")
    await recovers(bench)


async def test_a_quarantine_that_can_not_be_made_changes_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.upstream.commit()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", raising(NO_SPACE))
        await fails(bench, LocalError, "No space left on device")
    await recovers(bench)


async def test_a_disk_that_fails_while_packs_move_in_changes_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.upstream.commit()
    with monkeypatch.context() as patch:
        original = Path.rename

        def fail_at_the_index(self: Path, target: Path) -> Path:
            if self.suffix == ".idx":
                raise NO_SPACE
            return original(self, target)

        patch.setattr(Path, "rename", fail_at_the_index)
        await fails(bench, LocalError, "No space left on device")
    await recovers(bench)


async def test_refs_that_can_not_be_written_stay_as_they_are(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The objects are in by then, which does no harm: they are not sent again."""
    tip = bench.upstream.commit()
    refs, snapshot = bench.stored_refs(), bench.mirror.snapshot
    with monkeypatch.context() as patch:
        original = Path.rename

        def fail_at_the_refs(self: Path, target: Path) -> Path:
            if target.name == "packed-refs":
                raise NO_SPACE
            return original(self, target)

        patch.setattr(Path, "rename", fail_at_the_refs)
        with pytest.raises(LocalError, match="No space left on device"):
            await bench.update()
    assert bench.stored_refs() == refs
    assert bench.mirror.snapshot is snapshot
    bench.is_whole()
    assert bench.holds(tip)
    updated = await bench.update()
    assert updated.received_bytes == 0
    bench.mirrors()


async def test_an_error_of_the_system_says_what_it_was_about(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.upstream.commit()
    denied = PermissionError(13, "Permission denied", "/x/y")
    monkeypatch.setattr(BareRepository, "write_refs", raising(denied))
    with pytest.raises(LocalError) as caught:
        await bench.update()
    assert str(caught.value) == "[Errno 13] Permission denied: '/x/y'"


# --- first clones ------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [0, 3000])
async def test_a_clone_cut_off_leaves_nothing(
    upstream: Upstream, make_bench: MakeBench, forge: HttpBackend, engine: PackEngine, cut: int
) -> None:
    upstream.history(100)
    bench = make_bench(upstream, engine=engine)
    forge.faults = Faults(cut_after_bytes=cut, only=ForgeRequest.is_fetch)
    with pytest.raises(UpstreamUnavailable):
        await bench.update()
    assert not bench.path.exists()
    assert not list(bench.staging.iterdir())
    forge.faults = Faults()
    await recovers(bench)


@pytest.mark.parametrize("step", ["_create", "_put_in_place"])
async def test_a_clone_that_can_not_be_put_in_place_leaves_nothing(
    upstream: Upstream,
    make_bench: MakeBench,
    engine: PackEngine,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    bench = make_bench(upstream, engine=engine)
    with monkeypatch.context() as patch:
        patch.setattr(staging, step, raising(NO_SPACE))
        with pytest.raises(LocalError, match="No space left on device"):
            await bench.update()
    assert not bench.path.exists()
    assert not list(bench.staging.iterdir())
    await recovers(bench)


async def test_a_clone_replaces_what_nobody_serves(
    upstream: Upstream, make_bench: MakeBench
) -> None:
    """A clone that was given up at the very moment that it came into its place."""
    bench = make_bench(upstream)
    bench.path.mkdir(parents=True)
    (bench.path / "HEAD").write_text("nonsense", encoding="ascii")
    await recovers(bench)


async def test_half_a_clone_of_before_is_not_in_the_way(
    upstream: Upstream, make_bench: MakeBench
) -> None:
    bench = make_bench(upstream)
    leftover = bench.staging / "acme%2Fgitops-repo.12345678.git"
    leftover.mkdir()
    await bench.update()
    assert list(bench.staging.iterdir()) == [leftover], "the service clears it when it starts"
    leftover.rmdir()
    bench.mirrors()


# --- cut short ---------------------------------------------------------------------------------


class Pause:
    """Holds up a step that runs in a thread, until the test lets it go on."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._loop = asyncio.get_running_loop()
        self.reached = asyncio.Event()
        self.go_on = threading.Event()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._loop.call_soon_threadsafe(self.reached.set)
        assert self.go_on.wait(20)
        return self._function(*args, **kwargs)

    def as_method(self) -> Callable[..., Any]:
        """Return what can stand in for a method."""

        def method(*args: Any) -> Any:
            return self(*args)

        return method


async def cancelled_at(bench: Bench, pause: Pause) -> None:
    """Cancel a refresh at the pause; what runs in the thread goes on a moment longer."""
    updating = asyncio.create_task(bench.update())
    await pause.reached.wait()
    updating.cancel()
    await asyncio.wait((updating,), timeout=0)
    pause.go_on.set()
    await asyncio.wait((updating,))
    assert updating.cancelled()


@pytest.mark.parametrize("step", ["_create", "_put_in_place"])
async def test_a_clone_cut_short_is_not_cleaned_up_under_the_feet_of_its_thread(
    upstream: Upstream, make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    bench = make_bench(upstream)
    with monkeypatch.context() as patch:
        pause = Pause(getattr(staging, step))
        patch.setattr(staging, step, pause)
        await cancelled_at(bench, pause)
    assert not list(bench.staging.iterdir())
    if bench.path.exists():
        bench.git("fsck", "--strict")
    await recovers(bench)


@pytest.mark.parametrize(
    ("owner", "step"), [(Quarantine, "migrate"), (BareRepository, "write_refs")]
)
async def test_a_refresh_cut_short_is_whole_whatever_its_thread_was_at(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, owner: type, step: str
) -> None:
    bench.upstream.commit()
    with monkeypatch.context() as patch:
        pause = Pause(getattr(owner, step))
        patch.setattr(owner, step, pause.as_method())
        await cancelled_at(bench, pause)
    bench.is_whole()
    assert not list((bench.path / "objects").glob("tmp_*"))
    await recovers(bench)


async def test_a_step_that_fails_after_it_was_cancelled_is_no_news(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing about exceptions that nobody retrieved."""
    bench.upstream.commit()
    with monkeypatch.context() as patch:
        pause = Pause(raising(NO_SPACE))
        patch.setattr(Quarantine, "migrate", pause.as_method())
        await cancelled_at(bench, pause)
    await recovers(bench)


@pytest.mark.parametrize("operation", ["info/refs", "ls-refs", "fetch"])
async def test_a_clone_cut_short_on_the_line_leaves_nothing(
    upstream: Upstream, make_bench: MakeBench, forge: HttpBackend, operation: str
) -> None:
    bench = make_bench(upstream)
    forge.faults = Faults(
        stall=asyncio.Event(), only=lambda request: request.operation == operation
    )
    updating = asyncio.create_task(bench.update())
    await forge.wait_for_requests(1, operation)
    updating.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await updating
    assert not bench.path.exists()
    assert not list(bench.staging.iterdir())
    forge.faults = Faults()
    await recovers(bench)
