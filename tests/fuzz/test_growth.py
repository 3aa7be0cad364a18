"""Three times the input is at most about three times the work, and memory is bounded by it.

Work is counted in calls and in bytes that are copied. What a search does inside of one call is seen
by the last test: a quarter of a megabyte takes an instant where a pattern goes on, and for ever
where it goes back.
"""

import tracemalloc
from typing import Final

import pytest

from tests.fuzz.shapes import SHAPES, Shape
from tests.fuzz.targets import DECODED_BYTES_MAX, TARGETS
from tests.wire.work import assert_linear, bytes_made, calls_made

BYTES_PER_BYTE_MAX: Final = 64
"""JSON's `[],` is the worst: a list for three bytes."""

LONG_BYTES: Final = 1 << 18
LONG_REPEATS_MAX: Final = 50_000

COPIES_BYTES_FREE: Final = 32 << 10
"""Buffers that grow in steps, whatever the input."""

BYTES_MAX: Final = 2 * DECODED_BYTES_MAX


EVERY_SHAPE: Final = [
    pytest.param(name, shape, id=f"{name}-{number}")
    for name, shapes in SHAPES.items()
    for number, shape in enumerate(shapes)
]


def test_there_are_shapes_for_each_parser() -> None:
    assert sorted(SHAPES) == sorted(TARGETS)


def test_a_parser_that_copies_what_is_left_at_each_step_is_found() -> None:
    def parse(data: bytes) -> None:
        while data:
            data = data[1:]
            len(data)

    with pytest.raises(AssertionError, match="steps for"):
        assert_linear(lambda size: bytes_made(lambda: parse(bytes(size))), size=400)


@pytest.mark.parametrize(("name", "shape"), EVERY_SHAPE)
def test_work_grows_no_faster_than_its_input(name: str, shape: Shape) -> None:
    def calls(count: int) -> int:
        data = shape(count)
        return 100 + calls_made(lambda: TARGETS[name](data))

    def copies(count: int) -> int:
        data = shape(count)
        return COPIES_BYTES_FREE + bytes_made(lambda: TARGETS[name](data))

    TARGETS[name](shape(1))  # what is made at the first call only
    assert_linear(calls, size=100)
    assert_linear(copies, size=300)


@pytest.mark.parametrize(("name", "shape"), EVERY_SHAPE)
def test_memory_is_bounded_by_the_input(name: str, shape: Shape) -> None:
    data = shape(1000)
    TARGETS[name](data)
    tracemalloc.start()
    try:
        TARGETS[name](data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < BYTES_MAX + BYTES_PER_BYTE_MAX * len(data)


@pytest.mark.parametrize(("name", "shape"), EVERY_SHAPE)
def test_a_long_input_comes_to_an_end(name: str, shape: Shape) -> None:
    per_repeat = max(1, (len(shape(30)) - len(shape(10))) // 20)
    TARGETS[name](shape(min(LONG_REPEATS_MAX, LONG_BYTES // per_repeat)))
