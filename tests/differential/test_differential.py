"""Any history, any fetch: git's server and ours make the same of a reader.

What "the same" is, says `judging`. In `make test` these are a few hundred fetches, the same ones
each time; `make test-differential CASES=5000` makes up others.
"""

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.differential.cases import Cases
from tests.differential.judging import Judge
from tests.differential.questions import Question, questions
from tests.differential.servers import Ours
from tests.differential.worlds import World, WorldPlan, world_plans

QUESTIONS_EACH = 8
"""Fetches from each history: to make a history costs as much as to ask ten times."""


@pytest.mark.timeout(900 + Cases.count)
@settings(
    max_examples=Cases.count // QUESTIONS_EACH,
    derandomize=Cases.are_fixed,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    plan=world_plans(),
    asked=st.lists(questions(), min_size=QUESTIONS_EACH, max_size=QUESTIONS_EACH),
)
async def test_a_reader_gets_from_us_what_it_gets_from_git(
    ours: list[Ours], plan: WorldPlan, asked: list[Question]
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        world = World.make(plan, Path(directory) / "any.git")
        judge = await Judge.of(world, ours)
        git_has_tried = False
        for question in asked:
            outcome = await judge.compare(question)
            if outcome is not None and not outcome.after.is_partial and not git_has_tried:
                outcome.take_in_as_git(Path(directory))
                git_has_tried = True
