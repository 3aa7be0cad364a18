"""Every parser stands what it was ever found to fall over, and what is near to that.

The corpus was found by `make fuzz`, which docs/fuzzing.md explains. Files with a name in words are
findings that were mended; the others are there for the code that they reach.
"""

from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS
from tests.wire.strategies import edited

CORPUS: Final = Path(__file__).parent / "corpus"
CORPUS_BYTES_MAX: Final = 1 << 20

EXAMPLES: Final = 40
"""A look at each; to search is for `make fuzz`."""


def inputs(name: str) -> list[bytes]:
    return [file.read_bytes() for file in sorted((CORPUS / name).iterdir())]


def test_there_is_a_small_corpus_for_each_parser_and_no_other() -> None:
    assert sorted(directory.name for directory in CORPUS.iterdir()) == sorted(TARGETS)
    assert sum(len(one) for name in TARGETS for one in inputs(name)) < CORPUS_BYTES_MAX


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_was_found_only_the_declared_error_escapes(name: str) -> None:
    found = inputs(name)
    assert found
    for data in found:
        TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_near_to_it_raises_only_the_declared_error_too(name: str) -> None:
    near = edited(st.sampled_from(inputs(name)))

    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
    @given(near | st.binary(max_size=100))
    def check(data: bytes) -> None:
        TARGETS[name](data)

    check()
