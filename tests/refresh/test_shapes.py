"""From what readers asked follows what they will ask: equal but for the object ids."""

from dataclasses import replace

import pytest

from mirror.refresh.shapes import BEHIND_MAX, REFS_WATCHED_MAX, SHAPES_MAX, Shape, Shapes
from mirror.wire.filters import ObjectFilter
from mirror.wire.names import ObjectId, RefName
from mirror.wire.requests import Deepen, FetchRequest

MAIN = RefName(b"refs/heads/main")
OTHER = RefName(b"refs/heads/other")


def oid(number: int) -> ObjectId:
    return ObjectId(b"%040x" % number)


def asks(shapes: Shapes, fetch: FetchRequest, *haves: int, ref: RefName | None = MAIN) -> Shape:
    shape = shapes.recognise(fetch, ref, tuple(oid(have) for have in haves))
    assert shape is not None
    shapes.note(shape)
    return shape


SHALLOW_CLONE = FetchRequest(wants=(oid(1),), deepen=Deepen(depth=1), ofs_delta=True, done=True)


def test_a_shallow_clone_is_expected_again_at_the_next_tip() -> None:
    shapes = Shapes()
    asks(shapes, SHALLOW_CLONE)
    shapes.moved(MAIN, oid(1))
    assert shapes.expected({MAIN: oid(2)}, ()) == [replace(SHALLOW_CLONE, wants=(oid(2),))]


def test_readers_that_are_behind_are_expected_as_far_behind_as_before() -> None:
    shapes = Shapes()
    for old in (1, 2, 3):
        shapes.moved(MAIN, oid(old))
    fetch = FetchRequest(wants=(oid(4),), haves=(oid(3),), thin_pack=True, done=True)
    asks(shapes, fetch, 3)
    asks(shapes, fetch, 2)
    shapes.moved(MAIN, oid(4))
    expected = shapes.expected({MAIN: oid(5)}, ())
    assert [one.haves for one in expected] == [(oid(4),), (oid(3),)]
    assert all(one.wants == (oid(5),) and one.thin_pack and one.done for one in expected)


def test_a_reader_whose_history_ends_where_it_stands_is_expected_to_end_there() -> None:
    shapes = Shapes()
    shapes.moved(MAIN, oid(1))
    fetch = FetchRequest(
        wants=(oid(2),), haves=(oid(1),), shallow=frozenset({oid(1)}), deepen=Deepen(depth=1)
    )
    asks(shapes, fetch, 1)
    shapes.moved(MAIN, oid(2))
    (expected,) = shapes.expected({MAIN: oid(3)}, ())
    assert expected.haves == (oid(2),)
    assert expected.shallow == {oid(2)}
    assert expected.deepen == Deepen(depth=1)


def test_a_clone_is_expected_to_want_everything_at_every_push() -> None:
    shapes = Shapes()
    asks(shapes, FetchRequest(wants=(oid(1), oid(2)), include_tag=True), ref=None)
    (expected,) = shapes.expected({OTHER: oid(3)}, (oid(1), oid(3)))
    assert expected.wants == (oid(1), oid(3))
    assert expected.include_tag


def test_what_is_asked_most_is_made_first() -> None:
    shapes = Shapes()
    for number, times in ((1, 1), (2, 5), (3, 3)):
        for _ in range(times):
            asks(shapes, replace(SHALLOW_CLONE, deepen=Deepen(depth=number)))
    depths = [one.deepen.depth for one in shapes.expected({MAIN: oid(2)}, ())]
    assert depths == [2, 3, 1]


def test_other_refs_have_shapes_of_their_own() -> None:
    shapes = Shapes()
    asks(shapes, SHALLOW_CLONE)
    assert shapes.expected({OTHER: oid(2)}, ()) == []


def test_what_nobody_asks_for_any_more_is_forgotten() -> None:
    shapes = Shapes()
    asks(shapes, SHALLOW_CLONE)
    found = [bool(shapes.expected({MAIN: oid(number)}, ())) for number in range(6)]
    assert found == [True, True, True, False, False, False]


@pytest.mark.parametrize(
    ("fetch", "haves"),
    [
        (FetchRequest(deepen=Deepen(since=5)), ()),
        (FetchRequest(deepen=Deepen(exclude=(b"main",))), ()),
        (FetchRequest(deepen=Deepen(depth=1, relative=True)), ()),
        (FetchRequest(), (oid(9),)),
        (FetchRequest(), (oid(1), oid(2))),
        (FetchRequest(shallow=frozenset({oid(2)})), (oid(1),)),
    ],
    ids=["since", "not", "relative", "from elsewhere", "from two places", "other boundary"],
)
def test_what_tells_nothing_of_the_next_push_has_no_shape(
    fetch: FetchRequest, haves: tuple[ObjectId, ...]
) -> None:
    shapes = Shapes()
    shapes.moved(MAIN, oid(1))
    assert shapes.recognise(replace(fetch, wants=(oid(2),)), MAIN, haves) is None


def test_forms_and_filters_are_part_of_a_shape() -> None:
    shapes = Shapes()
    plain = FetchRequest(wants=(oid(1),))
    kinds = [
        plain,
        replace(plain, thin_pack=True),
        replace(plain, ofs_delta=True),
        replace(plain, include_tag=True),
        replace(plain, filter=ObjectFilter(blob_limit_bytes=0)),
        replace(plain, deepen=Deepen(depth=1)),
    ]
    assert len({asks(shapes, kind) for kind in kinds}) == len(kinds)
    expected = shapes.expected({MAIN: oid(2)}, ())
    assert {replace(one, wants=(oid(1),), done=False) for one in expected} == set(kinds)


def test_memory_is_bounded() -> None:
    shapes = Shapes()
    for number in range(1, 3 * SHAPES_MAX):
        asks(shapes, replace(SHALLOW_CLONE, deepen=Deepen(depth=number)))
    assert len(shapes.expected({MAIN: oid(2)}, ())) == SHAPES_MAX
    for number in range(2 * REFS_WATCHED_MAX):
        for tip in range(2 * BEHIND_MAX):
            shapes.moved(RefName(b"refs/heads/%d" % number), oid(tip))
    assert len(list(shapes.watched())) == REFS_WATCHED_MAX
    assert shapes.recognise(FetchRequest(), RefName(b"refs/heads/1999"), (oid(0),)) is None
