"""What an upstream has becomes what the mirror has: each kind of change, with both engines."""

import asyncio
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from mirror.config import EngineChoice
from mirror.demo.forge import Faults, ForgeRequest, HttpBackend
from mirror.errors import Damaged, UpstreamError
from mirror.refresh.opening import look_for_damage
from mirror.repository.bare import BareRepository
from mirror.repository.packing.engine import PackEngine, PackRequest
from mirror.stores import open_engine
from mirror.wire.names import ObjectId, Ref, RefName
from mirror.wire.ref_table import RefTable
from tests.git_client import Upstream
from tests.refresh.bench import moved, shown_by_git
from tests.refresh.conftest import MakeBench

Change = Callable[[Upstream], object]


def _merge(upstream: Upstream) -> None:
    upstream.commit("feature/a", {"a.txt": "a"})
    upstream.commit("main", {"b.txt": "b"}, parents=["main", "feature/a"])


def _detach(upstream: Upstream) -> None:
    tip = upstream.commit("side", {"c.txt": "c"})
    upstream.delete_ref("side")
    upstream.git("update-ref", "--no-deref", "HEAD", tip)


def _replace_all(upstream: Upstream) -> None:
    upstream.commit("trunk", {"new.txt": "new"}, parents=[])
    for name in upstream.refs():
        if name != "refs/heads/trunk":
            upstream.delete_ref(name)
    upstream.set_head("trunk")


CHANGES: dict[str, Change] = {
    "new branch": lambda upstream: upstream.commit("feature/new"),
    "new branch at a known commit": lambda upstream: upstream.force("copy", "main"),
    "moved branch": lambda upstream: upstream.history(3),
    "force-moved branch": lambda upstream: upstream.commit("develop", parents=["develop~2"]),
    "branch moved back": lambda upstream: upstream.force("develop", "develop~2"),
    "unrelated history": lambda upstream: upstream.commit("main", {"x": "y"}, parents=[]),
    "merge": _merge,
    "deleted branch": lambda upstream: upstream.delete_ref("develop"),
    "new annotated tag": lambda upstream: upstream.tag("v2"),
    "new lightweight tag": lambda upstream: upstream.tag("here", annotated=False),
    "nested tag": lambda upstream: upstream.tag("again", "v1"),
    "tag of a tree": lambda upstream: upstream.tag("tree", "main^{tree}"),
    "tag of a blob": lambda upstream: upstream.tag("blob", "main:README.md"),
    "bare tag of a blob": lambda upstream: upstream.tag("raw", "main:README.md", annotated=False),
    "moved tag": lambda upstream: upstream.tag("v1", "develop", message="Moved"),
    "deleted tag": lambda upstream: upstream.delete_ref("refs/tags/v1"),
    "changed default branch": lambda upstream: upstream.set_head("develop"),
    "unborn default branch": lambda upstream: upstream.set_head("not-yet"),
    "detached HEAD": lambda upstream: upstream.git("update-ref", "--no-deref", "HEAD", "main"),
    "HEAD detached where no ref is": _detach,
    "everything anew": _replace_all,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
async def test_every_kind_of_change_is_mirrored(
    rich: Upstream, make_bench: MakeBench, engine: PackEngine, change: Change
) -> None:
    bench = make_bench(rich, engine=engine)
    first = await bench.update()
    bench.mirrors()
    change(rich)
    second = await bench.update()
    bench.mirrors()
    assert second.snapshot.number == first.snapshot.number + 1
    shown = await shown_by_git(bench, str(bench.path))
    assert shown == await shown_by_git(bench, bench.settings.upstream)
    again = await bench.update()
    assert again.snapshot is second.snapshot, "nothing changed, nothing is published"


@pytest.mark.parametrize("is_v0", [False, True])
async def test_a_clone_and_a_fetch_take_few_round_trips(
    rich: Upstream, make_bench: MakeBench, forge: HttpBackend, engine: PackEngine, is_v0: bool
) -> None:
    forge.faults = Faults(force_protocol_v0=is_v0)
    bench = make_bench(rich, engine=engine)
    listing = ["info/refs"] if is_v0 else ["info/refs", "ls-refs"]
    await bench.update()
    assert forge.operations == [*listing, "fetch"]
    rich.commit()
    await bench.update()
    await bench.update()
    assert forge.operations[len(listing) + 1 :] == [listing[-1], "fetch", listing[-1]]
    bench.mirrors()


async def test_a_tip_that_is_here_already_is_not_fetched(
    rich: Upstream, make_bench: MakeBench, forge: HttpBackend
) -> None:
    bench = make_bench(rich)
    await bench.update()
    forge.requests.clear()
    rich.force("copy", "main~0")
    updated = await bench.update()
    assert forge.operations == ["ls-refs"]
    assert updated.received_bytes == 0
    bench.mirrors()


async def test_what_is_published_knows_heads_and_peeled_tags(
    rich: Upstream, make_bench: MakeBench, engine: PackEngine
) -> None:
    rich.tag("nested", "v1")
    rich.tag("of-tree", "main^{tree}")
    bench = make_bench(rich, engine=engine)
    snapshot = (await bench.update()).snapshot
    assert snapshot.head_target == b"refs/heads/main"
    assert snapshot.head == rich.oid().encode()
    peeled = {ref.name.decode(): ref.peeled.decode() for ref in snapshot.refs if ref.peeled}
    assert peeled == {
        "refs/tags/v1": rich.oid("v1^{}"),
        "refs/tags/nested": rich.oid("v1^{}"),
        "refs/tags/of-tree": rich.oid("main^{tree}"),
    }


async def test_a_mirror_opened_again_shows_what_it_showed(
    rich: Upstream, make_bench: MakeBench, engine: PackEngine
) -> None:
    bench = make_bench(rich, engine=engine)
    snapshot = (await bench.update()).snapshot
    repository = BareRepository.open(bench.path)
    try:
        opened = bench.updater.open(repository)
    finally:
        repository.close()
    assert opened.refs == snapshot.refs
    assert (opened.head, opened.head_target) == (snapshot.head, snapshot.head_target)


# --- empty upstreams ---------------------------------------------------------------------------


async def test_an_empty_upstream_is_an_empty_mirror_until_its_first_push(
    upstream_root: Path, forge: HttpBackend, make_bench: MakeBench, engine: PackEngine
) -> None:
    empty = Upstream(upstream_root, "acme/empty", branch="trunk")
    bench = make_bench(empty, engine=engine, refs_vanish_after_seconds=0.0)
    snapshot = (await bench.update()).snapshot
    assert snapshot.is_empty
    assert snapshot.head_target == b"refs/heads/trunk", "clients of an empty repository want it"
    bench.mirrors({})
    assert forge.operations == ["info/refs", "ls-refs"] * 2, "asked twice before it is believed"
    await bench.update()
    assert forge.operations[4:] == ["ls-refs"], "which is no news any more"
    empty.commit("trunk")
    await bench.update()
    bench.mirrors()


async def test_an_upstream_that_is_suddenly_empty_is_asked_twice(
    rich: Upstream, make_bench: MakeBench, forge: HttpBackend
) -> None:
    bench = make_bench(rich, refs_vanish_after_seconds=0.0)
    await bench.update()
    tips = set(rich.refs().values())
    for name in rich.refs():
        rich.delete_ref(name)
    forge.requests.clear()
    snapshot = (await bench.update()).snapshot
    assert forge.operations == ["ls-refs", "info/refs", "ls-refs"]
    assert snapshot.is_empty
    bench.mirrors({})
    assert bench.kept() == tips


async def test_an_upstream_that_is_empty_for_a_moment_only_is_not_believed(
    rich: Upstream, make_bench: MakeBench, forge: HttpBackend
) -> None:
    bench = make_bench(rich)
    before = (await bench.update()).snapshot
    refs = rich.refs()
    forge.requests.clear()

    async def blink(request: ForgeRequest) -> None:
        if len(forge.requests) == 1:
            for name in refs:
                rich.delete_ref(name)
        elif request.operation == "info/refs":
            rich.branches(refs)

    forge.on_request = blink
    assert (await bench.update()).snapshot is before
    assert forge.operations == ["ls-refs", "info/refs", "ls-refs"]


async def test_an_outage_never_looks_like_a_deletion(
    rich: Upstream, make_bench: MakeBench, forge: HttpBackend
) -> None:
    bench = make_bench(rich)
    before = (await bench.update()).snapshot
    for faults in (
        Faults(status=500),
        Faults(status=404),
        Faults(cut_after_bytes=0),
        Faults(cut_after_bytes=4),
        Faults(content_type="text/html"),
    ):
        forge.faults = faults
        with pytest.raises(UpstreamError):
            await bench.update()
    forge.faults = Faults()
    assert bench.mirror.snapshot is before
    bench.mirrors()


# --- races -------------------------------------------------------------------------------------


async def test_a_force_push_between_the_listing_and_the_fetch_is_caught_up_with(
    rich: Upstream, make_bench: MakeBench, forge: HttpBackend, engine: PackEngine
) -> None:
    bench = make_bench(rich, engine=engine)
    await bench.update()
    before = bench.fingerprint()
    for key in ("allowAnySHA1InWant", "allowReachableSHA1InWant", "allowTipSHA1InWant"):
        rich.config(f"uploadpack.{key}", "false")
    lost = rich.commit("develop")

    async def force(request: ForgeRequest) -> None:
        if request.is_fetch():
            forge.on_request = None
            rich.commit("develop", {"forced.txt": "1"}, parents=["develop~3"])
            rich.git("reflog", "expire", "--expire=now", "--all")
            rich.git("gc", "--prune=now", "--quiet")

    forge.on_request = force
    with pytest.raises(UpstreamError, match="not our ref"):
        await bench.update()
    assert bench.fingerprint() == before
    await bench.update()
    bench.mirrors()
    assert not bench.holds(lost)


async def test_a_push_between_the_listing_and_the_fetch_comes_with_the_next_refresh(
    rich: Upstream, make_bench: MakeBench, forge: HttpBackend
) -> None:
    bench = make_bench(rich)
    await bench.update()
    listed = rich.commit()

    async def push(request: ForgeRequest) -> None:
        if request.is_fetch():
            forge.on_request = None
            rich.commit()

    forge.on_request = push
    await bench.update()
    assert bench.refs()["refs/heads/main"] == listed
    await bench.update()
    bench.mirrors()


# --- what people see ---------------------------------------------------------------------------


async def test_progress_is_told_phase_by_phase(
    rich: Upstream, make_bench: MakeBench, engine: PackEngine
) -> None:
    rich.history(300)
    bench = make_bench(rich, engine=engine)
    phases: list[str | None] = []
    bench.mirror.watch = lambda mirror: phases.append(
        mirror.progress.phase if mirror.progress else None
    )
    await bench.update()
    order = list(dict.fromkeys(phases))
    assert order == ["asking", "receiving", "indexing", "checking", None]
    assert bench.mirror.progress is None


async def test_a_refresh_cut_short_leaves_no_progress_behind(
    rich: Upstream, make_bench: MakeBench, forge: HttpBackend
) -> None:
    bench = make_bench(rich)
    forge.faults = Faults(stall=asyncio.Event(), only=ForgeRequest.is_fetch)
    updating = asyncio.create_task(bench.update())
    await forge.wait_for_requests(1, "fetch")
    updating.cancel()
    await asyncio.wait((updating,))
    assert bench.mirror.progress is None
    assert not bench.path.exists()
    assert not list(bench.staging.iterdir())


async def test_a_renamed_upstream_is_noted(
    rich: Upstream, make_bench: MakeBench, forge: HttpBackend
) -> None:
    forge.faults = Faults(redirect=("acme/old", rich.name))
    bench = make_bench(rich, url=forge.repository_url("acme/old"))
    await bench.update()
    assert bench.mirror.moved_to == forge.repository_url(rich.name)
    bench.mirrors()


async def test_a_mirror_whose_refs_name_what_is_not_there_is_served_without_that(
    rich: Upstream, make_bench: MakeBench
) -> None:
    bench = make_bench(rich)
    await bench.update()
    repository = BareRepository.open(bench.path)
    try:
        stored = repository.read_refs()
        gone = Ref(RefName(b"refs/tags/zzz"), ObjectId(b"e" * 40))
        repository.write_refs(replace(stored, refs=RefTable.of([*stored.refs.values(), gone])))
        snapshot = bench.updater.open(repository)
        assert "refs/tags/zzz names an object that is missing" in str(
            look_for_damage(repository, snapshot)
        )
        repository.write_refs(replace(stored, refs=RefTable.of([gone])))
        with pytest.raises(Damaged, match="and so does every other ref"):
            look_for_damage(repository, bench.updater.open(repository))
    finally:
        repository.close()


async def test_a_listing_that_says_what_is_shown_is_not_looked_into(
    rich: Upstream, make_bench: MakeBench, engine: PackEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(rich, engine=engine)
    shown = (await bench.update()).snapshot
    with monkeypatch.context() as patch:
        patch.setattr("mirror.refresh.update.compare", lambda *_: 1 / 0)
        assert (await bench.update()).snapshot is shown
    rich.commit()
    await bench.update()
    bench.mirrors()
    back = rich.force("main", "main~1")
    await bench.update()
    assert bench.refs()["refs/heads/main"] == back, "also what was shown before the last"


async def test_a_listing_whose_refs_could_not_be_published_is_looked_into_again(
    rich: Upstream, make_bench: MakeBench, engine: PackEngine
) -> None:
    bench = make_bench(rich, engine=engine)
    await bench.update()
    rich.commit()
    await bench.updater.update(bench.mirror, bench.remote)  # and nobody publishes it
    await bench.update()
    bench.mirrors()


async def test_a_push_brings_the_answer_for_who_had_the_old_tip(
    rich: Upstream, make_bench: MakeBench, tmp_path: Path
) -> None:
    async with open_engine(EngineChoice.AUTO) as auto:
        bench = make_bench(rich, engine=auto)
        await bench.update()
        old, new = rich.oid(), rich.commit(files={"base/app.yaml": "image: web:2.0.0\n"})
        reader = Upstream(tmp_path / "reader")
        reader.git("fetch", "--quiet", str(bench.path), f"{old}:refs/heads/main")
        updated = await bench.update(moved(old, new))
        (answer,) = updated.answers
        assert answer.request == PackRequest(
            wants=(ObjectId(new.encode()),), haves=(ObjectId(old.encode()),),
            thin=True, ofs_delta=True,
        )  # fmt: skip
        reader.git("index-pack", "--stdin", "--fix-thin", stdin=answer.data)
        reader.force("main", new)
        reader.git("fsck", "--strict", "--full", "--connectivity-only")
        rich.tag("v9")
        assert (await bench.update()).answers == (), "nobody had the tag before"


async def test_the_time_of_a_confirmation_is_kept_now_and_then(
    rich: Upstream, make_bench: MakeBench
) -> None:
    bench = make_bench(rich)
    noted = []
    for _ in range(4):
        await bench.update()
        with closing(BareRepository.open(bench.path)) as again:
            noted.append(again.confirmed_before)
        bench.now += 40
    start = bench.now - 160
    assert noted == [start, start, start + 80, start + 80]
