"""What is damaged is mended: by the refresher, in every process, with the old tips."""

import asyncio
from pathlib import Path

import pytest
from click.testing import CliRunner

from mirror.cli import main
from mirror.demo.forge import Faults, HttpBackend
from mirror.errors import RefsVanished
from mirror.metrics import Metrics
from mirror.refresh.refresher import Trigger
from mirror.refresh.scrub import Scrubber
from mirror.repository import maintenance
from mirror.repository.bare import BareRepository
from mirror.wire.names import ObjectId
from tests.corruption.world import NO_CACHE, Judge, files_of, flip, furnish, grow
from tests.git_client import GitClient, Upstream
from tests.mirror_service import NAME, WAIT_SECONDS_MAX, MirrorService, configuration, mirroring


@pytest.fixture
def grown(upstream: Upstream) -> Upstream:
    grow(upstream)
    return upstream


def largest_pack(path: Path) -> Path:
    return max(files_of(path)["pack"], key=lambda pack: pack.stat().st_size)


def rot(path: Path) -> None:
    """Damage what every clone needs: the middle of the largest pack, where the picture is."""
    pack = largest_pack(path)
    flip(pack, 4 * pack.stat().st_size)


async def mended(running: MirrorService) -> None:
    await running.hosted().refresher.request(Trigger.DAMAGE)
    assert running.mirror().damage is None


@pytest.mark.parametrize("engine", ["auto", "dulwich"])
async def test_old_tips_are_carried_over_to_the_new_clone(
    engine: str, grown: Upstream, forge: HttpBackend, git_client: GitClient, tmp_path: Path
) -> None:
    async with mirroring(forge, tmp_path / "m", engine=engine, sections=NO_CACHE) as running:
        old = grown.commit()
        await running.hosted().refresher.request(Trigger.MANUAL)
        grown.force("main", "main~1")
        await running.hosted().refresher.request(Trigger.MANUAL)
        rot(running.mirror().path)
        before = running.mirror().repository
        await mended(running)
        repository = running.mirror().repository
        assert repository is not None
        assert repository is not before
        assert repository.read_refs().kept.keys() == {ObjectId(old.encode())}
        clone = await git_client.clone(running.url(), "--bare")
        await git_client.fetch(clone, "origin", old)
        await git_client.fsck(clone)
        aside = list((tmp_path / "m/data/set-aside").rglob("*.pack"))
        assert len(aside) == 1  # for a look; the rest of what was there is gone
        assert not list((tmp_path / "m/data/staging").iterdir())


async def test_while_the_upstream_is_down_what_is_sound_is_served_and_all_is_told(
    grown: Upstream, forge: HttpBackend, git_client: GitClient, tmp_path: Path
) -> None:
    async with mirroring(forge, tmp_path / "m", engine="auto", sections=NO_CACHE) as running:
        path = running.mirror().path
        judge = Judge(git_client, running, grown)
        await judge.prepare()
        rot(path)
        forge.faults = Faults(status=500)
        await judge.ask()
        with pytest.raises(Exception, match="a fault was asked for"):
            await running.hosted().refresher.request(Trigger.DAMAGE)
        # The listing and the small fetch need nothing of what is damaged, the clones do.
        assert (judge.right, judge.errors) == (2, 2)
        status = (await running.get("/status.json")).json["repositories"][NAME]
        assert largest_pack(path).name in status["damage"]
        assert status["damaged_since"] is not None
        assert await running.metric("git_mirror_repository_damaged", repository=NAME) == 1
        assert await running.metric("git_mirror_damage_found_total", kind="pack") == 1
        forge.faults = Faults()
        await mended(running)
        assert await running.metric("git_mirror_repository_damaged", repository=NAME) == 0
        assert await running.metric("git_mirror_healed_total", how="fetched") == 1
        await judge.ask(must_succeed=True)


async def test_workers_follow_a_mirror_that_was_cloned_anew(
    grown: Upstream, forge: HttpBackend, git_client: GitClient, tmp_path: Path
) -> None:
    async with mirroring(
        forge, tmp_path / "m", engine="auto", workers=2, sections=NO_CACHE
    ) as running:
        judge = Judge(git_client, running, grown)
        await judge.prepare()
        rot(running.mirror().path)
        forge.faults = Faults(status=500)
        for _ in range(2):  # whichever worker answers
            await judge.ask()
        assert judge.errors > 0
        forge.faults = Faults()
        await mended(running)
        for _ in range(2):
            await judge.ask(must_succeed=True)


async def test_a_pack_whose_objects_are_gone_is_fetched_again(
    grown: Upstream, forge: HttpBackend, git_client: GitClient, tmp_path: Path
) -> None:
    """No checksum tells of a file that is not there; an answer that needs it does."""
    async with mirroring(forge, tmp_path / "m", engine="git", sections=NO_CACHE) as running:
        path = running.mirror().path
        grown.commit(files={"more.txt": "more\n"})
        await running.hosted().refresher.request(Trigger.MANUAL)
        judge = Judge(git_client, running, grown)
        await judge.prepare()
        largest_pack(path).unlink()
        forge.faults = Faults(status=500)
        await judge.ask()
        forge.faults = Faults()
        running.mirror().damage = "objects are missing"
        await mended(running)
        await judge.ask(must_succeed=True)


@pytest.mark.parametrize("left", [0, 1])
async def test_refs_that_vanish_while_it_is_damaged_are_kept_until_it_is_confirmed(
    left: int, grown: Upstream, forge: HttpBackend, git_client: GitClient, tmp_path: Path
) -> None:
    """The damaged mirror is then all that there is of them."""
    grown.branches({f"more-{number}": "main" for number in range(20)})
    async with mirroring(forge, tmp_path / "m", engine="auto", sections=NO_CACHE) as running:
        refs = grown.refs()
        rot(running.mirror().path)
        for name in list(refs)[left:]:
            grown.delete_ref(name)
        for _ in range(2):
            with pytest.raises(RefsVanished, match="accept-deletions"):
                await running.hosted().refresher.request(Trigger.DAMAGE)
        assert running.mirror().damage is not None
        assert await git_client.ls_remote(running.url(), "--refs") == refs
        await running.hosted().refresher.request(Trigger.ACCEPT)
        assert running.mirror().damage is None
        assert await git_client.ls_remote(running.url(), "--refs") == grown.refs()
        kept = running.mirror().repository
        assert kept is not None
        assert kept.check(since=0.0) == []


async def test_maintenance_leaves_alone_what_is_mended(
    grown: Upstream, forge: HttpBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mirroring(forge, tmp_path / "m", engine="git", sections=NO_CACHE) as running:
        maintainer, begun = running.service.maintainer, asyncio.Event()
        assert maintainer is not None
        ended: list[BareRepository] = []

        async def merge(repository: BareRepository, before: object) -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(repository)

        monkeypatch.setattr(maintainer, "_merge", merge)
        monkeypatch.setattr(maintenance, "INDEXED_BYTES_MIN", 1)
        maintainer._records.clear()
        before = running.mirror().repository
        maintainer.published(running.mirror())
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            await begun.wait()
        rot(running.mirror().path)
        await mended(running)
        assert ended == [before]
        assert running.mirror().repository is not before


async def test_the_scrub_finds_damage_that_nobody_reads_and_has_it_mended(
    grown: Upstream, forge: HttpBackend, tmp_path: Path
) -> None:
    async with mirroring(forge, tmp_path / "m", engine="git") as running:
        hosted, mirror = running.hosted(), running.mirror()
        assert mirror.repository is not None
        await furnish(mirror.repository)
        metrics = Metrics("test")
        scrubber = Scrubber(
            running.service.registry,
            [],
            metrics,
            interval_seconds=3600,
            bytes_per_second=1 << 40,
        )
        assert await scrubber.scrub(hosted) == []
        assert mirror.scrubbed_at is not None
        read = metrics.registry.get_sample_value("git_mirror_scrubbed_bytes_total")
        assert read is not None
        assert read > largest_pack(mirror.path).stat().st_size - 100
        for kind in ("pack", "index", "bitmap", "commit-graph", "packed-refs", "HEAD", "config"):
            await furnish(mirror.repository)
            file = files_of(mirror.path)[kind][0]
            flip(file, 4 * file.stat().st_size)
            assert [one.path for one in await scrubber.scrub(hosted)] == [file]
            await hosted.refresher.request(Trigger.MANUAL)  # after the one that the scrub began
            assert await scrubber.scrub(hosted) == []
        scrubber.close()


async def test_fsck_names_what_is_damaged_beside_a_running_service(
    grown: Upstream, forge: HttpBackend, tmp_path: Path
) -> None:
    file = configuration(forge, tmp_path / "m", engine="git")
    async with mirroring(forge, tmp_path / "m", engine="git") as running:
        path = running.mirror().path
        command = ["fsck", "--config", str(file)]
        sound = CliRunner().invoke(main, command)
        assert (sound.exit_code, sound.stdout) == (0, f"ok       {NAME}\n")
        before = {one: one.stat().st_mtime_ns for one in path.rglob("*")}
        rot(path)
        flip(path / "packed-refs", 2000)
        found = CliRunner().invoke(main, [*command, NAME])
        assert found.exit_code == 1
        assert "DAMAGED" in found.stdout
        assert "2 problems" in found.stderr
        assert largest_pack(path).name in found.stderr
        assert before.keys() == set(path.rglob("*"))
        await mended(running)
        assert CliRunner().invoke(main, command).exit_code == 0
