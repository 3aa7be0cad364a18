"""A flipped bit is found, never served as good, and mended from the upstream."""

from pathlib import Path

import pytest

from mirror.demo.forge import Faults, HttpBackend
from mirror.refresh.refresher import Trigger
from mirror.repository import integrity
from tests.corruption.world import NO_CACHE, Judge, files_of, flip, flips, furnish, grow
from tests.git_client import GitClient, Upstream
from tests.mirror_service import configuration, mirroring, serving


@pytest.fixture
def count(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--corruption-flips"))


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--corruption-seed"))


@pytest.fixture
def grown(upstream: Upstream) -> Upstream:
    grow(upstream)
    return upstream


@pytest.mark.parametrize("engine", ["auto", "dulwich"])
@pytest.mark.timeout(7200)
async def test_a_bit_that_flips_while_it_serves(
    engine: str,
    grown: Upstream,
    forge: HttpBackend,
    git_client: GitClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    seed: int,
) -> None:
    # Rot shows in no time of a change: what was found right a moment ago counts for nothing here.
    monkeypatch.setattr(integrity, "CHECKED_SECONDS", 0.0)
    async with mirroring(forge, tmp_path / "m", engine=engine, sections=NO_CACHE) as running:
        judge = Judge(git_client, running, grown)
        await judge.prepare()
        mirror = running.mirror()
        tried = 0
        for kind, chance in flips(seed, count):
            assert mirror.repository is not None
            await furnish(mirror.repository)
            files = files_of(mirror.path)[kind]
            if not files:
                continue  # the engine makes none
            tried += 1
            file = chance.choice(files)
            bit = chance.randrange(8 * file.stat().st_size)
            flip(file, bit)
            print(f"{kind}: bit {bit} of {file.name}")
            if chance.random() < 0.5:
                forge.faults = Faults(status=500)
            await judge.ask()
            forge.faults = Faults()
            await running.hosted().refresher.request(Trigger.DAMAGE)
            assert mirror.damage is None
            assert mirror.repository.check(since=0.0) == []
            await judge.ask(must_succeed=True)
            await git_client.run("fsck", "--strict", cwd=mirror.path)
        print(f"{tried} flips: {judge.right} answers were right, {judge.errors} were errors")
        found = [
            await running.metric("git_mirror_damage_found_total", kind=kind)
            for kind in integrity.Kind
        ]
        assert sum(value or 0 for value in found) >= tried


@pytest.mark.parametrize("engine", ["auto", "dulwich"])
@pytest.mark.timeout(7200)
async def test_a_bit_that_flips_while_it_is_stopped(
    engine: str,
    grown: Upstream,
    forge: HttpBackend,
    git_client: GitClient,
    tmp_path: Path,
    count: int,
    seed: int,
) -> None:
    file = configuration(forge, tmp_path / "m", engine=engine, sections=NO_CACHE)
    tried = right = errors = 0
    for kind, chance in flips(seed + 1, max(1, count // 2)):
        async with serving(file, forge) as running:
            await running.mirrored()
            mirror = running.mirror()
            assert mirror.repository is not None
            await furnish(mirror.repository)
        files = files_of(mirror.path)[kind]
        if not files:
            continue
        tried += 1
        target = chance.choice(files)
        bit = chance.randrange(8 * target.stat().st_size)
        flip(target, bit)
        print(f"{kind}: bit {bit} of {target.name}")
        forge.faults = Faults(status=500)
        async with serving(file, forge) as running:
            judge = Judge(git_client, running, grown)
            await judge.prepare()
            await judge.ask()
            forge.faults = Faults()
            await running.hosted().refresher.request(Trigger.DAMAGE)
            await running.mirrored()
            mirror = running.mirror()
            assert mirror.damage is None
            assert mirror.repository is not None
            assert mirror.repository.check(since=0.0) == []
            await judge.ask(must_succeed=True)
            right, errors = right + judge.right, errors + judge.errors
    print(f"{tried} flips: {right} answers were right, {errors} were errors")
