"""What the comparison with git's server has found: each case by itself, with every engine."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.differential.judging import Judge
from tests.differential.questions import Depth, Past, Question
from tests.differential.servers import Ours
from tests.differential.worlds import Target, World, WorldPlan
from tests.git_client import FIRST_COMMIT_AT
from tests.repository.histories import Change


async def judge_of(ours: list[Ours], directory: Path, plan: WorldPlan) -> Judge:
    return await Judge.of(World.make(plan, directory / "any.git"), ours)


def line_of(commits: int) -> list[Change]:
    """Commits, each the parent of the next."""
    return [
        Change({"a": b"%d\n" % number}, [number - 1][:number], FIRST_COMMIT_AT + number * 60)
        for number in range(commits)
    ]


async def test_a_v0_reader_that_deepens_gets_its_pack_whoever_finds_it_ready_earlier(
    ours: list[Ours], tmp_path: Path
) -> None:
    # Places among the tips go by the names of the branches: b1 is the first commit, main the last.
    judge = await judge_of(ours, tmp_path, WorldPlan(line_of(3), branches=[-1, 0]))
    flags = frozenset({"no-done"})
    question = Question(wants=[1], version=0, past=[Past([0])], deepen=Depth(1), flags=flags)
    assert await judge.compare(question) is not None


async def test_a_reader_whose_boundary_nobody_knows_is_told_nothing_of_it(
    ours: list[Ours], tmp_path: Path
) -> None:
    judge = await judge_of(ours, tmp_path, WorldPlan(line_of(1)))
    assert await judge.compare(Question(version=2, foreign_shallow=True)) is not None


@pytest.mark.parametrize("version", [0, 2])
async def test_who_wants_no_commit_need_not_tell_of_any(
    ours: list[Ours], tmp_path: Path, version: int
) -> None:
    """What is ready: a tag of a tree is wanted, and the reader has told of a blob."""
    plan = WorldPlan(line_of(2), tags=[(Target.TREE, 0, True)], branches=[-1])
    judge = await judge_of(ours, tmp_path, plan)
    has_a_blob = Question(wants=[1], version=version, past=[Past([0])], odd_haves=[0], strange=[1])
    for place in range(len(judge.world.objects)):
        question = replace(has_a_blob, odd_haves=[place], round_haves=2)
        assert await judge.compare(question) is not None


@pytest.mark.parametrize("version", [0, 2])
async def test_a_tag_that_a_reader_tells_of_does_not_stand_for_its_commit(
    ours: list[Ours], tmp_path: Path, version: int
) -> None:
    plan = WorldPlan(line_of(1), tags=[(Target.COMMIT, 0, True)])
    judge = await judge_of(ours, tmp_path, plan)
    for place in range(len(judge.world.objects)):
        question = Question([0], version, past=[Past([1])], odd_haves=[place], round_haves=1)
        assert await judge.compare(question) is not None


async def test_what_a_commit_of_the_same_second_leads_to_is_not_sent_again(
    ours: list[Ours], tmp_path: Path
) -> None:
    """A rebase makes many in one second. The reader tells of its newest commit only."""
    for number in range(3):  # which of them comes first, depends on their ids
        commits = [
            Change({"a": b"%d of %d\n" % (place, number)}, [place - 1][:place], FIRST_COMMIT_AT)
            for place in range(4)
        ]
        plan = WorldPlan(commits, branches=[-1, 0, 1, 2])
        judge = await judge_of(ours, tmp_path / f"{number}", plan)
        made = judge.world.made
        others = [place for place, oid in enumerate(sorted(made)) if oid != made[-1]]
        for want in range(3):
            question = Question(wants=[want], past=[Past([3])], untold=others)
            assert await judge.compare(question) is not None
