"""Packs for readers. git is the judge: it takes each pack in where a reader has just the haves."""

from dataclasses import replace

import pytest

from mirror.repository.bare import BareRepository
from mirror.repository.packing.engine import PackEngine, PackRequest
from mirror.wire.filters import parse_filter
from tests.repository.histories import Atlas
from tests.repository.judge import Judge
from tests.repository.packing.building import build

WANTS = [
    "main",
    "crossed",
    "deep-edited",
    "reverted",
    "root",
    "nested-tag",
    "tree-tag",
    "blob-tag",
    "tree",
    "root-tree",
    "blob",
    "empty-directory",
    "main diverged unrelated-2",
    "tag old-tag tree blob main",
]
HAVES = [
    "",
    "equal",
    "empty",
    "root",
    "submodule",
    "diverged",
    "unrelated",
    "main",
    "right old-tag",
    "left cross-right",
    "tree blob",
    "unrelated-2 diverged edited no-submodule",
]


@pytest.mark.parametrize("haves", HAVES)
@pytest.mark.parametrize("wants", WANTS)
async def test_a_reader_gets_all_that_it_lacks(
    engine: PackEngine,
    repository: BareRepository,
    atlas: Atlas,
    judge: Judge,
    wants: str,
    haves: str,
) -> None:
    request = PackRequest(wants=atlas.all(*wants.split()), haves=atlas.all(*haves.split()))
    received = judge.check(request, await build(engine, repository, request))
    judge.check_history(request, received)
    if not haves:
        assert received.oids == judge.git_sends(request)


@pytest.mark.parametrize("haves", HAVES)
@pytest.mark.parametrize("wants", WANTS)
async def test_deltas_are_of_the_forms_that_the_reader_understands(
    engine: PackEngine,
    repository: BareRepository,
    atlas: Atlas,
    judge: Judge,
    wants: str,
    haves: str,
) -> None:
    request = PackRequest(wants=atlas.all(*wants.split()), haves=atlas.all(*haves.split()))
    for thin, ofs_delta in ((True, False), (True, True)):
        asked = replace(request, thin=thin, ofs_delta=ofs_delta)
        judge.check(asked, await build(engine, repository, asked))


FILTERS = [
    b"blob:none",
    b"blob:limit=9",
    b"blob:limit=10",
    b"blob:limit=600",
    b"tree:0",
    b"tree:1",
    b"tree:2",
    b"tree:3",
    b"object:type=commit",
    b"object:type=tree",
    b"object:type=blob",
    b"object:type=tag",
]
COMBINED = [
    b"combine:blob:limit=600+tree:3",
    b"combine:object:type=blob+blob:limit=600",
    b"combine:object:type=tree+tree:2",
    b"combine:object:type=tree+object:type=tag",
]
FILTERED_WANTS = ["main", "nested-tag", "tree", "root-tree", "blob", "tree-tag", "main tree blob"]


@pytest.mark.parametrize("wants", FILTERED_WANTS)
@pytest.mark.parametrize("haves", ["", "empty", "root", "main"])
async def test_filters_leave_out_what_git_leaves_out(
    engine: PackEngine,
    repository: BareRepository,
    atlas: Atlas,
    judge: Judge,
    wants: str,
    haves: str,
) -> None:
    request = PackRequest(wants=atlas.all(*wants.split()), haves=atlas.all(*haves.split()))
    for spec in FILTERS:
        asked = replace(request, filter=parse_filter(spec))
        received = judge.check(asked, await build(engine, repository, asked))
        if not haves:
            assert received.oids == judge.git_sends(asked), spec


@pytest.mark.parametrize("wants", FILTERED_WANTS)
async def test_each_of_combined_filters_applies(
    engine: PackEngine, repository: BareRepository, atlas: Atlas, judge: Judge, wants: str
) -> None:
    """Git's own combination forgets a blob that lies too deep here and not too deep there."""
    oids = atlas.all(*wants.split())
    for spec in COMBINED:
        request = PackRequest(wants=oids, filter=parse_filter(spec))
        received = judge.check(request, await build(engine, repository, request))
        for part in spec.removeprefix(b"combine:").split(b"+"):
            assert received.oids <= judge.reachable(oids, wanted=parse_filter(part)), spec
