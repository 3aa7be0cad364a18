"""Equal bodies are planned for once while the refs are the same."""

import asyncio
from pathlib import Path
from typing import cast

import pytest

from mirror.config import RepositorySettings
from mirror.refresh.mirror import Mirror
from mirror.repository.fetching import FetchPlan
from mirror.repository.packing.engine import PackRequest
from mirror.repository.packing.pack_store import PackKey
from mirror.repository.snapshot import RefSnapshot
from mirror.web.plans import PLANNED_BODY_BYTES_MAX, PLANS_MAX, Planned, Plans
from mirror.wire.requests import SideBand


class Named:
    name = "acme/gitops-repo"


def snapshot(number: int) -> RefSnapshot:
    return RefSnapshot(number, [], head_target=None, agent=b"test")


@pytest.fixture
async def mirror() -> Mirror:
    settings = cast("RepositorySettings", Named())
    return Mirror(settings, Path("/nowhere"), snapshot=snapshot(1))


def planned(*, by_name: bool = False) -> Planned:
    pack = PackRequest(wants=())
    return Planned(FetchPlan(b"", pack, SideBand.LARGE), pack, PackKey("0"), None, by_name)


def remember(plans: Plans, mirror: Mirror, body: bytes, plan: Planned) -> None:
    assert mirror.snapshot is not None
    plans.add(mirror, mirror.snapshot, 2, body, plan)


async def test_a_plan_is_found_by_body_and_version(mirror: Mirror) -> None:
    plans, plan = Plans(), planned()
    remember(plans, mirror, b"body", plan)
    assert await plans.find(mirror, 2, b"body") is plan
    assert await plans.find(mirror, 0, b"body") is None
    assert await plans.find(mirror, 2, b"other") is None


async def test_a_plan_ends_with_the_refs_it_was_made_for(mirror: Mirror) -> None:
    plans = Plans()
    remember(plans, mirror, b"body", planned())
    mirror.snapshot = snapshot(2)
    assert await plans.find(mirror, 2, b"body") is None


async def test_what_names_refs_or_is_long_is_not_remembered(mirror: Mirror) -> None:
    plans = Plans()
    remember(plans, mirror, b"body", planned(by_name=True))
    assert await plans.find(mirror, 2, b"body") is None
    long = bytes(PLANNED_BODY_BYTES_MAX + 1)
    remember(plans, mirror, long, planned())
    assert await plans.find(mirror, 2, long) is None


async def test_who_comes_while_it_is_being_planned_waits_for_that(mirror: Mirror) -> None:
    plans, plan = Plans(), planned()
    with plans.making(mirror, 2, b"body"):
        waiting = [asyncio.create_task(plans.find(mirror, 2, b"body")) for _ in range(3)]
        await asyncio.sleep(0)
        assert not any(one.done() for one in waiting)
        assert await plans.find(mirror, 2, b"other") is None
        remember(plans, mirror, b"body", plan)
    assert await asyncio.gather(*waiting) == [plan] * 3


async def test_who_waited_in_vain_plans_itself(mirror: Mirror) -> None:
    plans = Plans()
    with pytest.raises(ZeroDivisionError), plans.making(mirror, 2, b"body"):
        waiting = asyncio.create_task(plans.find(mirror, 2, b"body"))
        await asyncio.sleep(0)
        raise ZeroDivisionError
    assert await waiting is None


async def test_only_the_plans_used_last_are_kept(mirror: Mirror) -> None:
    plans = Plans()
    for number in range(PLANS_MAX + 1):
        if number == PLANS_MAX:
            await plans.find(mirror, 2, b"0")
        remember(plans, mirror, b"%d" % number, planned())
    assert await plans.find(mirror, 2, b"0") is not None
    assert await plans.find(mirror, 2, b"1") is None
