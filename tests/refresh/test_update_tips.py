"""Which tips are fetched and which are kept: old ones, those of the patterns, one of hundreds."""

import pytest

from mirror.demo.forge import Faults, HttpBackend
from mirror.repository.packing.engine import PackEngine
from tests.git_client import Upstream
from tests.refresh.bench import Bench
from tests.refresh.conftest import MakeBench

# --- old tips ----------------------------------------------------------------------------------


def fetchable(bench: Bench, oid: str) -> bool:
    """Ask git to fetch an object by its id from the mirror's directory."""
    reader = Upstream(bench.staging.parent / f"reader-{oid[:8]}")
    serving = "git -c uploadpack.allowReachableSHA1InWant=true upload-pack"
    reader.git("fetch", "--quiet", f"--upload-pack={serving}", str(bench.path), oid)
    return reader.git("cat-file", "-t", oid) == "commit"


async def test_old_tips_are_kept_until_maintenance_gives_them_up(
    rich: Upstream, make_bench: MakeBench, engine: PackEngine
) -> None:
    bench = make_bench(rich, engine=engine)
    await bench.update()
    forced, deleted, tag = rich.oid("develop"), rich.oid("main"), rich.oid("v1")
    rich.commit("develop", parents=["develop~1"])
    await bench.update()
    assert bench.kept() == {forced}
    bench.now += 3600
    rich.set_head("develop")
    rich.delete_ref("main")
    rich.tag("v1", "develop", message="Moved")
    await bench.update()
    bench.mirrors()
    assert bench.kept() == {forced, deleted, tag}
    assert fetchable(bench, forced)
    assert fetchable(bench, deleted)
    bench.now += 48 * 3600
    rich.commit("develop")
    await bench.update()
    bench.mirrors()
    assert bench.kept() == {forced, deleted, tag}


async def test_a_fast_forward_leaves_nothing_to_keep(
    rich: Upstream, make_bench: MakeBench, engine: PackEngine
) -> None:
    bench = make_bench(rich, engine=engine)
    await bench.update()
    rich.history(30)
    rich.commit("feature/a", {"a.txt": "a"})
    rich.commit("main", {"b.txt": "b"}, parents=["main", "feature/a"])
    await bench.update()
    assert bench.kept() == set()


async def test_a_tip_forced_away_twice_is_kept_from_the_last_time(
    rich: Upstream, make_bench: MakeBench
) -> None:
    bench = make_bench(rich)
    await bench.update()
    old, other = rich.oid("develop"), rich.oid("develop~1")
    for target in (other, old, other):
        bench.now += 1000
        rich.force("develop", target)
        await bench.update()
    assert bench.kept() == {old}
    until = int(bench.now) + 24 * 3600
    assert f"refs/git-mirror/kept/{until}/{old}" in bench.stored_refs()


async def test_a_mirror_of_a_mirror_does_not_take_its_kept_tips(
    rich: Upstream, make_bench: MakeBench
) -> None:
    rich.force("refs/git-mirror/kept/1/x", "main")
    rich.force("refs/git-mirror/other", "main")
    bench = make_bench(rich, refs=("refs/*",))
    await bench.update()
    assert not any("git-mirror" in name for name in bench.stored_refs())


# --- which refs --------------------------------------------------------------------------------


@pytest.mark.parametrize("is_v0", [False, True])
@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (("refs/heads/*", "refs/tags/*"), {"heads/main", "heads/release/1", "tags/v1"}),
        (("refs/heads/release/*",), {"heads/release/1"}),
        (("refs/heads/main",), {"heads/main"}),
        (("refs/heads/mai",), set()),
        (("refs/*",), {"heads/main", "heads/release/1", "tags/v1", "notes/commits"}),
        (("refs/*/main",), {"heads/main"}),
        (("refs/pull/*/head", "refs/tags/*"), {"pull/1/head", "tags/v1"}),
        (("refs/pull*",), set()),
        (("refs/merge-requests/*",), {"merge-requests/2/head"}),
    ],
)
async def test_only_the_refs_of_the_patterns_are_mirrored(
    upstream: Upstream,
    make_bench: MakeBench,
    forge: HttpBackend,
    patterns: tuple[str, ...],
    expected: set[str],
    is_v0: bool,
) -> None:
    upstream.tag("v1")
    upstream.branches(
        {
            "release/1": upstream.oid(),
            "refs/notes/commits": upstream.oid(),
            "refs/pull/1/head": upstream.oid(),
            "refs/pull/1/merge": upstream.oid(),
            "refs/merge-requests/2/head": upstream.oid(),
        }
    )
    forge.faults = Faults(force_protocol_v0=is_v0)
    # Without doubt: some match nothing, which else is believed after a minute.
    bench = make_bench(upstream, refs=patterns, refs_vanish_after_seconds=0)
    await bench.update()
    names = {f"refs/{name}" for name in expected}
    bench.mirrors({name: oid for name, oid in upstream.refs().items() if name in names})
    assert set(bench.refs()) == names


async def test_commits_of_refs_that_are_not_mirrored_stay_away(
    upstream: Upstream, make_bench: MakeBench
) -> None:
    secret = upstream.commit("wip")
    bench = make_bench(upstream, refs=("refs/heads/main",))
    await bench.update()
    assert bench.holds(upstream.oid("main"))
    assert not bench.holds(secret)


# --- many refs, and what is sent ---------------------------------------------------------------


async def test_one_change_among_hundreds_of_refs_is_a_small_pack(
    upstream: Upstream, make_bench: MakeBench, forge: HttpBackend, engine: PackEngine
) -> None:
    tips = upstream.history(350, "zz-last")
    upstream.branches({f"b{number:03}": tip for number, tip in enumerate(tips)})
    bench = make_bench(upstream, engine=engine)
    await bench.update()
    bench.mirrors()
    upstream.commit("zz-last")
    updated = await bench.update()
    bench.mirrors()
    assert updated.received_bytes < 1000
    body = forge.requests[-1].body
    assert body.count(b"want ") == 1
    assert body.count(b"have ") == 256
    assert f"have {tips[-1]}".encode() in body, "what the ref was is the best of all"


async def test_a_new_branch_among_hundreds_is_told_of_the_default_branch(
    upstream: Upstream, make_bench: MakeBench, forge: HttpBackend
) -> None:
    """New branches come from there; its name may be the last of all."""
    old = upstream.history(300, "aa")
    upstream.branches({f"b{number:03}": tip for number, tip in enumerate(old)})
    upstream.history(50, "zz-trunk")
    upstream.set_head("zz-trunk")
    bench = make_bench(upstream)
    await bench.update()
    upstream.force("feature", "zz-trunk")
    upstream.commit("feature")
    updated = await bench.update()
    assert updated.received_bytes < 1000
    bench.mirrors()


async def test_many_refs_of_one_commit_leave_room_for_other_haves(
    upstream: Upstream, make_bench: MakeBench, forge: HttpBackend
) -> None:
    upstream.branches(dict.fromkeys((f"a{number:03}" for number in range(400)), upstream.oid()))
    upstream.history(40, "zz-other")
    bench = make_bench(upstream)
    await bench.update()
    upstream.force("new", "zz-other")
    upstream.commit("new")
    updated = await bench.update()
    assert updated.received_bytes < 1000
    assert f"have {upstream.oid('zz-other')}".encode() in forge.requests[-1].body


async def test_a_clone_sends_no_haves(
    rich: Upstream, make_bench: MakeBench, forge: HttpBackend
) -> None:
    await make_bench(rich).update()
    assert b"have " not in forge.requests[-1].body
