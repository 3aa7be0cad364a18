"""Packs for shallow readers: histories with an end, which a reader moves back and forth."""

from dataclasses import replace

import pytest

from mirror.repository.bare import BareRepository
from mirror.repository.packing.engine import PackEngine, PackRequest
from mirror.repository.shallow import update_shallow
from mirror.wire.filters import ObjectFilter
from mirror.wire.requests import INFINITE_DEPTH, Deepen
from tests.git_client import FIRST_COMMIT_AT
from tests.repository.histories import Atlas
from tests.repository.judge import Judge
from tests.repository.packing.building import build

DEEPENINGS = [
    Deepen(depth=1),
    Deepen(depth=2),
    Deepen(depth=4),
    Deepen(depth=30),
    Deepen(depth=1, relative=True),
    Deepen(depth=3, relative=True),
    Deepen(depth=INFINITE_DEPTH),
    Deepen(since=FIRST_COMMIT_AT + 60 * 12),
]


@pytest.mark.parametrize(
    ("wants", "haves", "shallow"),
    [
        ("main", "", "main"),
        ("main", "", "equal"),
        ("main", "", "crossed root"),
        ("main", "", "left right"),
        ("main", "", "left cross-right"),
        ("main tag", "", "main crossed"),
        ("main", "crossed", "left right"),
        ("main", "cross-left", "left right"),
        ("main", "crossed", "crossed"),
        ("main", "empty", "empty"),
        ("main diverged", "deep", "deep"),
        ("main diverged", "file-again", "directory"),
        ("main", "diverged", "diverged"),
        ("nested-tag", "left", "left"),
    ],
)
async def test_nothing_beyond_the_boundary_is_sent_or_taken_for_granted(
    engine: PackEngine,
    repository: BareRepository,
    atlas: Atlas,
    judge: Judge,
    wants: str,
    haves: str,
    shallow: str,
) -> None:
    request = PackRequest(
        wants=atlas.all(*wants.split()),
        haves=atlas.all(*haves.split()),
        shallow=frozenset(atlas.all(*shallow.split())),
        ofs_delta=True,
    )
    received = judge.check(request, await build(engine, repository, request))
    judge.check_history(request, received)
    thin = replace(request, thin=True)
    judge.check(thin, await build(engine, repository, thin))
    lean = replace(request, filter=ObjectFilter(blob_limit_bytes=0))
    received_lean = judge.check(lean, await build(engine, repository, lean))
    if not haves:
        assert received.oids == judge.git_sends(request)
        assert received_lean.oids == judge.git_sends(lean)


@pytest.mark.parametrize("deepen", DEEPENINGS, ids=str)
@pytest.mark.parametrize("had", ["main", "crossed root", "left right", "cross-left left"])
async def test_a_shallow_reader_gets_exactly_as_deep_as_it_asked(
    engine: PackEngine,
    repository: BareRepository,
    atlas: Atlas,
    judge: Judge,
    had: str,
    deepen: Deepen,
) -> None:
    """It has main, cut at some commits; it asks for more or less of main's past, or of another."""
    client_shallow = frozenset(atlas.all(*had.split()))
    for wants in ("main", "main diverged"):
        update = update_shallow(
            repository.graph,
            wants=atlas.all(*wants.split()),
            client_shallow=client_shallow,
            deepen=deepen,
        )
        request = PackRequest(
            wants=(*atlas.all(*wants.split()), *update.wants),
            haves=(atlas["main"], *update.haves),
            shallow=update.boundary,
            thin=True,
            ofs_delta=True,
        )
        received = judge.check(request, await build(engine, repository, request))
        end = (client_shallow - set(update.unshallow)) | set(update.shallow)
        judge.check_history(request, received, end)


@pytest.mark.parametrize(
    ("wants", "haves"),
    [
        ("main", ""),
        ("main", "left"),
        ("reverted", ""),
        ("crossed", "cross-left"),
        ("old-tag", ""),
        ("main", "crossed"),
        ("tree", ""),
        ("unrelated", ""),
    ],
)
async def test_annotated_tags_follow_what_they_point_to(
    engine: PackEngine,
    repository: BareRepository,
    atlas: Atlas,
    judge: Judge,
    wants: str,
    haves: str,
) -> None:
    """A tag of a tag brings the inner one too; a tag of what is not sent stays away."""
    tags = tuple(ref for ref in repository.read_refs().refs.values() if ref.peeled is not None)
    assert len(tags) == 5
    nested = tuple(ref for ref in tags if ref.oid == atlas["nested-tag"])
    for wanted in (None, ObjectFilter(object_types=frozenset({b"commit"}))):
        bare = PackRequest(
            wants=atlas.all(*wants.split()), haves=atlas.all(*haves.split()), filter=wanted
        )
        plain = judge.check(bare, await build(engine, repository, bare))
        # git looks at the repository's own tags, whichever of them the request names.
        for given in (tags, nested) if engine.name == "dulwich" else (tags,):
            request = replace(bare, tags=given)
            received = judge.check(request, await build(engine, repository, request))
            followed = {ref.oid for ref in given if ref.peeled in plain.oids}
            chains = {oid for tag in followed for oid in repository.graph.tag_chain(tag)[:-1]}
            assert received.oids == plain.oids | chains
            if not haves and given == tags:
                assert received.oids == judge.git_sends(request)
