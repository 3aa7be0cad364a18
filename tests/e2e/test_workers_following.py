"""Pushes come through two workers as through one process: the other files' tests, again."""

import pytest

# ruff: noqa: F401 - pytest runs what is imported, with the fixtures of this file
from tests.e2e.test_at_scale import (
    test_20_clients_at_once_are_all_served,
    test_clones_in_the_middle_of_pushes_get_commits_that_the_upstream_had,
)
from tests.e2e.test_fetching import (
    test_a_clone_follows_its_upstream_through_every_kind_of_change,
    test_a_commit_that_no_webhook_announced_is_fetched_by_its_id,
    test_a_new_commit_is_fetched_right_after_its_webhook,
    test_a_renamed_default_branch_becomes_head,
    test_an_old_tip_stays_fetchable_by_its_id_after_a_force_push,
    test_an_outage_of_the_upstream_is_not_one_of_the_mirror,
)


@pytest.fixture(scope="module")
def engine() -> str:
    """Who makes the packs: who serves them makes no difference to the other."""
    return "git"


@pytest.fixture
def version() -> int:
    """The protocol that the client asks for; what follows is the same with each."""
    return 2


@pytest.fixture(scope="module")
def workers() -> int:
    """How many processes serve."""
    return 2
