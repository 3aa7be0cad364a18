"""Reading from two workers is as from one process: a choice of the other files' tests, again."""

import pytest

# ruff: noqa: F401 - pytest runs what is imported, with the fixtures of this file
from tests.e2e.test_cloning import (
    test_a_kustomize_base_is_one_commit_of_any_ref,
    test_an_id_that_nobody_has_is_not_our_ref,
    test_any_reachable_commit_can_be_fetched_by_its_id,
    test_what_a_partial_clone_lacks_is_fetched_when_it_is_needed,
)
from tests.e2e.test_listing import test_it_lists_what_the_upstream_lists

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def engine() -> str:
    """Who makes the packs: who serves them makes no difference to the other."""
    return "git"


@pytest.fixture(scope="module")
def workers() -> int:
    """How many processes serve."""
    return 2
