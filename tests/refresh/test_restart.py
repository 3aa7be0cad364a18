"""The service ends, however it ends, and starts again on what it left on disk."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from mirror.config import EngineChoice, RepositorySettings, ServerSettings, Settings
from mirror.config.addresses import ListenAddress
from mirror.demo.forge import Faults, ForgeRequest, HttpBackend
from mirror.once import sync_once
from mirror.places import DataDirectoryInUse
from mirror.refresh.mirror import Mirror
from mirror.service import Service
from tests.git_client import Upstream, environment
from tests.mirror_service import hosted_by
from tests.refresh.bench import WAIT_SECONDS_MAX

NAME = "acme/gitops-repo"
Damage = Callable[[Path], object]


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


def settings(
    data_dir: Path, url: str, engine: EngineChoice = EngineChoice.GIT, *names: str
) -> Settings:
    """Mirror the repository at `url` under each of `names`."""
    repositories = {
        name: RepositorySettings(name=name, upstream=url, poll_interval_seconds=None)
        for name in names or (NAME,)
    }
    return Settings(
        source=data_dir / "mirror.yaml",
        data_dir=data_dir,
        repositories=repositories,
        server=ServerSettings(listen=ListenAddress("127.0.0.1", 0)),
        engine=engine,
    )


@asynccontextmanager
async def serving(configured: Settings) -> AsyncIterator[Mirror]:
    """Run the service and give its only mirror, whatever state that is in."""
    async with Service(configured) as service:
        yield hosted_by(service, NAME).mirror


async def mirrored(mirror: Mirror) -> None:
    """Wait until nothing is announced that is not covered."""
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        while mirror.freshness.is_pending:
            await mirror.changed.wait(WAIT_SECONDS_MAX)


def shown(mirror: Mirror) -> dict[str, str]:
    assert mirror.snapshot is not None
    return {ref.name.decode(): ref.oid.decode() for ref in mirror.snapshot.refs}


def is_whole(mirror: Mirror) -> None:
    subprocess.run(
        ["git", "fsck", "--strict", "--full"],
        cwd=mirror.path,
        env=environment(mirror.path),
        capture_output=True,
        check=True,
    )
    assert not list((mirror.path / "objects").glob("tmp_*"))


def files(place: Path) -> list[str]:
    return sorted(file.name for file in place.iterdir())


@pytest.fixture
def url(forge: HttpBackend, upstream: Upstream) -> str:
    upstream.history(30)
    upstream.tag("v1")
    return forge.repository_url(upstream.name)


@pytest.mark.parametrize("engine", [EngineChoice.GIT, EngineChoice.DULWICH])
async def test_a_mirror_is_there_again_at_once_even_with_the_upstream_down(
    forge: HttpBackend, upstream: Upstream, data_dir: Path, url: str, engine: EngineChoice
) -> None:
    async with serving(settings(data_dir, url, engine)) as mirror:
        await mirrored(mirror)
    (kept,) = data_dir.rglob("git-mirror-confirmed")
    confirmed_at = kept.stat().st_mtime - 3600
    os.utime(kept, (confirmed_at, confirmed_at))
    forge.faults = Faults(status=500)
    async with Service(settings(data_dir, url, engine)) as service:
        hosted = hosted_by(service, NAME)
        assert shown(hosted.mirror) == upstream.refs(), "before anybody was asked"
        admitted = await hosted.gate.admit()
        assert admitted.stale_seconds is not None
        assert 3600 <= admitted.stale_seconds < 7200, "since it was confirmed last, an hour ago"
        assert admitted.snapshot.head == upstream.oid().encode()
        tip = upstream.commit()
        forge.faults = Faults()
        await mirrored(hosted.mirror)
        assert shown(hosted.mirror)["refs/heads/main"] == tip
    is_whole(hosted.mirror)


async def test_readers_of_a_restarted_service_see_what_was_pushed_meanwhile(
    forge: HttpBackend, upstream: Upstream, data_dir: Path, url: str
) -> None:
    async with serving(settings(data_dir, url)) as mirror:
        await mirrored(mirror)
    tip = upstream.commit()
    forge.requests.clear()
    async with Service(settings(data_dir, url)) as service:
        admitted = await hosted_by(service, NAME).gate.admit()
        assert admitted.stale_seconds is None
        assert admitted.snapshot.head == tip.encode()
    assert forge.operations == ["info/refs", "ls-refs", "fetch"], "not cloned anew"


async def test_old_tips_survive_a_restart(upstream: Upstream, data_dir: Path, url: str) -> None:
    old = upstream.oid()
    async with serving(settings(data_dir, url)) as mirror:
        await mirrored(mirror)
    upstream.force("main", "main~5")
    for _ in range(2):
        async with serving(settings(data_dir, url)) as mirror:
            await mirrored(mirror)
            assert mirror.repository is not None
            assert old.encode() in mirror.repository.read_refs().kept


@pytest.mark.parametrize("after_bytes", [0, 2000])
async def test_a_clone_that_the_end_of_the_service_cut_short_is_made_anew(
    forge: HttpBackend, upstream: Upstream, data_dir: Path, url: str, after_bytes: int
) -> None:
    forge.faults = Faults(
        stall=asyncio.Event(), stall_after_bytes=after_bytes, only=ForgeRequest.is_fetch
    )
    async with serving(settings(data_dir, url)) as mirror:
        await forge.wait_for_requests(1, "fetch")
        assert len(files(data_dir / "staging")) == 1
        assert mirror.snapshot is None
    assert files(data_dir / "staging") == []
    assert not mirror.path.exists()
    forge.faults = Faults()
    async with serving(settings(data_dir, url)) as mirror:
        await mirrored(mirror)
        assert shown(mirror) == upstream.refs()
    is_whole(mirror)


async def test_an_ingest_that_the_end_of_the_service_cut_short_is_made_anew(
    forge: HttpBackend, upstream: Upstream, data_dir: Path, url: str
) -> None:
    async with serving(settings(data_dir, url)) as mirror:
        await mirrored(mirror)
    before = upstream.refs()
    upstream.history(20)
    forge.faults = Faults(stall=asyncio.Event(), stall_after_bytes=1000, only=ForgeRequest.is_fetch)
    async with serving(settings(data_dir, url)) as mirror:
        await forge.wait_for_requests(2, "fetch")
        assert shown(mirror) == before
    is_whole(mirror)
    forge.faults = Faults()
    async with serving(settings(data_dir, url)) as mirror:
        await mirrored(mirror)
        assert shown(mirror) == upstream.refs()
    is_whole(mirror)


# --- killed ------------------------------------------------------------------------------------


class Process:
    """`git-mirror serve` as a process of its own, which is killed without a word."""

    def __init__(self, data_dir: Path, url: str) -> None:
        data_dir.mkdir(exist_ok=True)
        self._file = data_dir / "mirror.yaml"
        self._file.write_text(
            f"server: {{listen: '127.0.0.1:0'}}\ndata_dir: {data_dir}\n"
            f"repositories: {{{NAME}: {{upstream: '{url}'}}}}\n",
            encoding="utf-8",
        )
        self._process: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> "Process":
        self._process = await asyncio.to_thread(self._start)
        return self

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "mirror", "serve", "--config", str(self._file)],
            env={"PATH": os.environ["PATH"]},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # its children are to go with it
        )

    async def __aexit__(self, *_: object) -> None:
        process = self._process
        assert process is not None
        os.killpg(process.pid, signal.SIGKILL)
        assert await asyncio.to_thread(process.wait, WAIT_SECONDS_MAX) == -signal.SIGKILL


async def test_a_kill_in_the_middle_of_a_clone_and_of_an_ingest_leaves_nothing_broken(
    forge: HttpBackend, upstream: Upstream, data_dir: Path, url: str
) -> None:
    """Twice, for the second finds what the first left."""
    stalled = Faults(stall=asyncio.Event(), stall_after_bytes=2000, only=ForgeRequest.is_fetch)
    forge.faults = stalled
    async with Process(data_dir, url), asyncio.timeout(WAIT_SECONDS_MAX):
        await forge.wait_for_requests(1, "fetch")
    assert list(data_dir.glob("staging/*/objects/tmp_*/received.pack")), "half a clone"
    forge.faults = Faults()
    async with serving(settings(data_dir, url)) as mirror:
        assert files(data_dir / "staging") == [], "half a clone is never served"
        await mirrored(mirror)
        assert shown(mirror) == upstream.refs()
    is_whole(mirror)

    before = upstream.refs()
    upstream.history(20)
    forge.requests.clear()
    forge.faults = stalled
    async with Process(data_dir, url), asyncio.timeout(WAIT_SECONDS_MAX):
        await forge.wait_for_requests(1, "fetch")
    assert list(mirror.path.glob("objects/tmp_*/received.pack")), "half a pack"
    forge.faults = Faults(status=500)
    async with serving(settings(data_dir, url)) as mirror:
        is_whole(mirror)
        assert shown(mirror) == before
        forge.faults = Faults()
        await mirrored(mirror)
        assert shown(mirror) == upstream.refs()
    is_whole(mirror)


# --- set aside ---------------------------------------------------------------------------------


async def test_a_mirror_of_another_upstream_is_set_aside_and_cloned_anew(
    forge: HttpBackend, upstream_root: Path, data_dir: Path, url: str
) -> None:
    async with serving(settings(data_dir, url)) as mirror:
        await mirrored(mirror)
    other = Upstream(upstream_root, "acme/other")
    other.commit()
    with capture_logs() as logs:
        async with serving(settings(data_dir, forge.repository_url(other.name))) as mirror:
            assert mirror.snapshot is None, "never the refs of another repository"
            await mirrored(mirror)
            assert shown(mirror) == other.refs()
    (log,) = (log for log in logs if log["event"] == "mirror_set_aside")
    assert f"it mirrors {url}; the configuration says" in log["reason"]
    assert files(data_dir / "set-aside") == [Path(log["path"]).name]
    is_whole(mirror)


def _flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.chmod(0o600)
    path.write_bytes(content)


def _index(path: Path) -> Path:
    return next((path / "objects" / "pack").glob("pack-*.idx"))


def _file_in_its_place(path: Path) -> None:
    shutil.rmtree(path)
    path.write_bytes(b"")


def _refs(content: bytes) -> Damage:
    """Write another content into both files of refs."""

    def write(path: Path) -> None:
        for name in ("packed-refs", "git-mirror-refs"):
            (path / name).write_bytes(content)

    return write


DAMAGES: dict[str, Damage] = {
    "garbage in the refs": _refs(b"\0\xffwhat?\n"),
    "half a line in the refs": _refs(b"0123456789"),
    "a kept tip that makes no sense": _refs(b"%b refs/git-mirror/kept/soon/x\n" % (b"1" * 40)),
    "refs to what is not there": _refs(b"%b refs/heads/main\n" % (b"1" * 40)),
    "garbage in the configuration": lambda path: (path / "config").write_bytes(b"[what\0?"),
    "no objects": lambda path: shutil.rmtree(path / "objects"),
    "a pack without its index": lambda path: _index(path).unlink(),
    "an index without its pack": lambda path: _index(path).with_suffix(".pack").unlink(),
    "a damaged index": lambda path: _flip(_index(path), 0),
    "an index cut short": lambda path: os.truncate(_index(path), 100),
    "a file in its place": _file_in_its_place,
}


MENDED: dict[str, Damage] = {
    "no packed-refs": lambda path: (path / "packed-refs").unlink(),
    "garbage in packed-refs": lambda path: (path / "packed-refs").write_bytes(b"\0\xffwhat?\n"),
    "an empty packed-refs": lambda path: (path / "packed-refs").write_bytes(b""),
    "garbage in the copy": lambda path: (path / "git-mirror-refs").write_bytes(b"\0\xffwhat?\n"),
    "no copy": lambda path: (path / "git-mirror-refs").unlink(),
    "no HEAD": lambda path: (path / "HEAD").unlink(),
    "garbage in HEAD": lambda path: (path / "HEAD").write_bytes(b"what?"),
    "an empty HEAD": lambda path: (path / "HEAD").write_bytes(b""),
    "no configuration": lambda path: (path / "config").unlink(),
}


@pytest.mark.parametrize("damage", MENDED.values(), ids=MENDED.keys())
async def test_what_can_be_made_anew_is_without_the_upstream(
    upstream: Upstream, forge: HttpBackend, data_dir: Path, url: str, damage: Damage
) -> None:
    async with serving(settings(data_dir, url)) as mirror:
        await mirrored(mirror)
    damage(mirror.path)
    forge.faults = Faults(status=500)
    async with serving(settings(data_dir, url)) as mirror:
        assert shown(mirror) == upstream.refs()
        assert mirror.damage is None
    assert not files(data_dir / "set-aside")
    is_whole(mirror)
    copies = [(mirror.path / name).read_bytes() for name in ("packed-refs", "git-mirror-refs")]
    assert copies[0] == copies[1]


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
async def test_a_damaged_mirror_is_set_aside_and_cloned_anew(
    upstream: Upstream, data_dir: Path, url: str, damage: Damage
) -> None:
    async with serving(settings(data_dir, url)) as mirror:
        await mirrored(mirror)
    damage(mirror.path)
    with capture_logs() as logs:
        async with serving(settings(data_dir, url)) as mirror:
            await mirrored(mirror)
            assert shown(mirror) == upstream.refs()
    assert [log["repository"] for log in logs if log["event"] == "mirror_set_aside"] == [NAME]
    assert len(files(data_dir / "set-aside")) == 1
    is_whole(mirror)


async def test_one_damaged_mirror_does_not_keep_the_others_from_starting(
    upstream: Upstream, forge: HttpBackend, data_dir: Path, url: str
) -> None:
    configured = settings(data_dir, url, EngineChoice.GIT, "a", "b/c")
    async with Service(configured) as service:
        for hosted in service.registry:
            await mirrored(hosted.mirror)
    _refs(b"?")(data_dir / "repositories" / "a.git")
    forge.faults = Faults(status=500)
    async with Service(configured) as service:
        assert hosted_by(service, "a").mirror.snapshot is None
        assert shown(hosted_by(service, "b/c").mirror) == upstream.refs()
    assert [name.partition(".")[0] for name in files(data_dir / "set-aside")] == ["a"]


# --- one at a time -----------------------------------------------------------------------------


async def test_a_data_directory_has_one_user_at_a_time(data_dir: Path, url: str) -> None:
    configured = settings(data_dir, url)
    async with serving(configured) as mirror:
        await mirrored(mirror)
        with pytest.raises(DataDirectoryInUse, match="is in use by another git-mirror"):
            async with Service(configured):
                pass
        with pytest.raises(DataDirectoryInUse):
            await sync_once(configured, NAME, watch=None)
        await mirrored(mirror)
        assert mirror.path.exists(), "it did no harm"
    async with serving(configured) as mirror:
        assert mirror.snapshot is not None
    await sync_once(configured, NAME, watch=None)


async def test_syncing_without_a_service_does_what_the_service_does(
    upstream: Upstream, data_dir: Path, url: str
) -> None:
    configured = settings(data_dir, url)
    phases: list[str] = []

    def watch(mirror: Mirror) -> None:
        if mirror.progress is not None:
            phases.append(mirror.progress.phase)

    await sync_once(configured, NAME, watch=watch)
    assert phases[0] == "asking"
    upstream.commit()
    await sync_once(configured, NAME, watch=None)
    async with serving(configured) as mirror:
        assert shown(mirror) == upstream.refs()
