"""A table of refs is a sorted dict that is cheap to change, whatever its chunks."""

import gzip
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.wire import ref_table
from mirror.wire.advertise import encode_ls_refs, encode_v0_advertisement
from mirror.wire.names import ObjectId, Ref, RefName
from mirror.wire.ref_table import (
    CHUNK_REFS_MAX,
    RefTable,
    packed_lines,
    parse_packed_lines,
    unpeeled_lines,
)
from mirror.wire.requests import LsRefsRequest
from tests.wire.work import calls_made

AGENT = b"git-mirror/test"

names = st.lists(st.sampled_from([b"a", b"b", b"\xff", b"/", b"tags", b"0"]), min_size=1).map(
    lambda parts: RefName(b"refs/" + b"".join(parts))
)
oids = st.integers(0, 3).map(lambda number: ObjectId(b"%040x" % number))
models = st.dictionaries(names, st.tuples(oids, st.none() | oids), max_size=30)
changes = st.dictionaries(names, st.none() | st.tuples(oids, st.none() | oids), max_size=6)


def ref(name: RefName, ids: tuple[ObjectId, ObjectId | None]) -> Ref:
    return Ref(name, *ids)


def refs_of(model: Mapping[RefName, tuple[ObjectId, ObjectId | None]]) -> dict[RefName, Ref]:
    return {name: ref(name, ids) for name, ids in model.items()}


@contextmanager
def small_chunks() -> Iterator[None]:
    """So small that a few refs make many."""
    with (
        patch.object(ref_table, "CHUNK_REFS_MAX", 4),
        patch.object(ref_table, "CHUNK_REFS_MIN", 2),
    ):
        yield


def many(count: int) -> list[Ref]:
    """Refs as a big repository has them: every third is an annotated tag."""
    return [
        Ref(
            RefName(b"refs/%b/%06d" % (b"tags" if number % 3 == 0 else b"heads", number)),
            ObjectId(b"%040x" % number),
            ObjectId(b"%040x" % (number + 1)) if number % 3 == 0 else None,
        )
        for number in range(count)
    ]


@given(models, names)
def test_a_table_is_a_dict_in_the_order_of_the_names(
    model: dict[RefName, tuple[ObjectId, ObjectId | None]], name: RefName
) -> None:
    refs = refs_of(model)
    with small_chunks():
        table = RefTable.of(refs.values())
    assert list(table) == sorted(refs)
    assert list(table.values()) == [refs[one] for one in sorted(refs)]
    assert list(table.tags()) == [one for one in table.values() if one.peeled is not None]
    assert table == refs
    assert len(table) == len(refs)
    assert all(table[one] == refs[one] for one in refs)
    assert table.get(name) == refs.get(name)
    assert (name in table) == (name in refs)


@pytest.mark.parametrize(
    "name",
    [
        b"",
        b" ",
        b"refs/heads/a ",
        b"refs/heads/a\n",
        b"peeled:" + b"1" * 40,
        b"refs/tags/b peeled:",
    ],
)
def test_what_is_no_name_is_not_found_in_the_encoded_lines(name: bytes) -> None:
    table = RefTable.of(
        [
            Ref(RefName(b"refs/heads/a"), ObjectId(b"0" * 40)),
            Ref(RefName(b"refs/tags/b"), ObjectId(b"0" * 40), ObjectId(b"1" * 40)),
        ]
    )
    assert table.get(RefName(name)) is None
    assert list(table.lines_with(name)) == (
        [table.chunks[0].lines] if b"refs/".startswith(name) else []
    )


@given(models, st.lists(changes, max_size=6))
def test_after_any_changes_a_table_answers_as_one_made_from_scratch(
    model: dict[RefName, tuple[ObjectId, ObjectId | None]],
    steps: list[dict[RefName, tuple[ObjectId, ObjectId | None] | None]],
) -> None:
    refs = refs_of(model)
    with small_chunks():
        table = RefTable.of(refs.values())
        for step in steps:
            before, old = table, dict(refs)
            new = {name: ref(name, ids) if ids else None for name, ids in step.items()}
            table = table.replace(new)
            refs = {name: one for name, one in (refs | new).items() if one is not None}
            assert table == refs
            assert before == old, "it never changes"
            assert table.difference(before) == {
                name: (old.get(name), refs.get(name))
                for name in {*old, *refs}
                if old.get(name) != refs.get(name)
            }
            assert all(chunk.count <= 4 for chunk in table.chunks)
    scratch = RefTable.of(refs.values())
    for version in (0, 1):
        ours, theirs = (
            encode_v0_advertisement(one, head=None, head_target=None, agent=AGENT, version=version)
            for one in (table, scratch)
        )
        assert ours.plain() == theirs.plain()
        assert gzip.decompress(ours.gzip(ours.plain())) == theirs.plain()
    for prefixes in ((), (b"refs/a",), (b"refs/tags", b"refs/b", b"refs/ba")):
        for peel in (False, True):
            request = LsRefsRequest(peel=peel, ref_prefixes=prefixes)
            asked = [
                encode_ls_refs(one, request, head=None, head_target=None)
                for one in (table, scratch)
            ]
            assert asked[0] == asked[1]


@given(models)
def test_packed_refs_are_read_back_as_they_were(
    model: dict[RefName, tuple[ObjectId, ObjectId | None]],
) -> None:
    with small_chunks():
        table = RefTable.of(refs_of(model).values())
        content = b"".join(packed_lines(chunk.lines) for chunk in table.chunks)
        assert RefTable(parse_packed_lines(content)) == table


@pytest.mark.parametrize(
    "content",
    [
        b"garbage\n",
        b"0" * 40 + b" refs/heads/a",
        b"0" * 39 + b" refs/heads/a\n",
        b"^" + b"0" * 40 + b"\n",
        b"0" * 40 + b" refs/heads/a b\n",
        b"0" * 40 + b" refs/heads/b\n" + b"0" * 40 + b" refs/heads/a\n",
        b"0" * 40 + b" refs/heads/a\n" + b"0" * 40 + b" refs/heads/a\n",
        b"0" * 40 + b" refs/heads/a\n" + b"\n",
    ],
)
def test_damaged_packed_refs_are_refused(content: bytes) -> None:
    good = b"".join(packed_lines(chunk.lines) for chunk in RefTable.of(many(1000)).chunks)
    with pytest.raises(ValueError, match="ref"):
        list(parse_packed_lines(content))
    with pytest.raises(ValueError, match="ref"):
        list(parse_packed_lines(good + content))


@pytest.mark.parametrize("name", [b"refs/heads/a b", b"refs/heads/a\nb"])
def test_a_name_that_would_break_the_lines_is_refused(name: bytes) -> None:
    with pytest.raises(ValueError, match="space"):
        RefTable.of([Ref(RefName(name), ObjectId(b"0" * 40))])


def test_a_change_of_one_ref_shares_all_chunks_but_its_own() -> None:
    table = RefTable.of(many(20 * CHUNK_REFS_MAX))
    new = Ref(RefName(b"refs/heads/001000"), ObjectId(b"f" * 40))
    changed = table.replace({new.name: new})
    assert len({*map(id, changed.chunks)} - {*map(id, table.chunks)}) == 1
    assert changed[new.name] == new


def test_the_work_of_a_change_and_of_a_question_does_not_grow_with_the_refs() -> None:
    new = Ref(RefName(b"refs/heads/001000"), ObjectId(b"f" * 40))
    prefix = LsRefsRequest(peel=True, ref_prefixes=(new.name,))

    def work(table: RefTable) -> None:
        changed = table.replace({new.name: new})
        changed.difference(table)
        encode_ls_refs(changed, prefix, head=None, head_target=None)

    few, lots = (RefTable.of(many(count)) for count in (4 * CHUNK_REFS_MAX, 40 * CHUNK_REFS_MAX))
    per_chunk = 8
    more_chunks = len(lots.chunks) - len(few.chunks)
    assert calls_made(lambda: work(lots)) < calls_made(lambda: work(few)) + per_chunk * more_chunks


def test_deletions_leave_no_crumbs() -> None:
    refs = many(20 * CHUNK_REFS_MAX)
    table = RefTable.of(refs)
    for start in range(0, len(refs), 100):
        table = table.replace(dict.fromkeys(one.name for one in refs[start : start + 99]))
    assert list(table.values()) == sorted(refs[99::100], key=lambda one: one.name)
    assert len(table.chunks) <= 2


def test_unpeeled_lines_are_those_of_the_same_refs_without_tags() -> None:
    refs = many(500)
    plain = RefTable.of(Ref(one.name, one.oid) for one in refs)
    lines = [unpeeled_lines(chunk.lines) for chunk in RefTable.of(refs).chunks]
    assert b"".join(lines) == b"".join(chunk.lines for chunk in plain.chunks)
