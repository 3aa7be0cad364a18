"""Which bundles to make next. Pure: refs and what is known of history are passed in.

* None yet: a base with all branches and tags.
* Refs changed: one more bundle with what is new, on top of those before.
* `INCREMENTS_MAX` of them on top of the base: these and the base become one, with the last one's
  token, so that clients which have it all take nothing twice; what is new comes on top.
* History was taken back (a force-push, a deleted branch that was not merged): a base of what there
  is now, and the others go. What somebody removed for a reason is not to be handed out for ever.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from mirror.wire.bundles import Bundle
from mirror.wire.names import ObjectId, RefName

INCREMENTS_MAX: Final = 8
"""A client that clones asks for each of them."""

PREREQUISITES_MAX: Final = 1000
"""Commits that a bundle says its reader must have. Any are right; more make its pack smaller."""

BRANCHES: Final = b"refs/heads/"
BUNDLED: Final = (BRANCHES, b"refs/tags/")


@dataclass(frozen=True, slots=True)
class Step:
    """One bundle to make.

    Attributes:
        refs: What it brings.
        prerequisites: What its reader has; for a base nothing.
        token: Its creation token.
    """

    refs: Mapping[RefName, ObjectId]
    prerequisites: tuple[ObjectId, ...]
    token: int


@dataclass(frozen=True, slots=True)
class BundlePlan:
    """What to do.

    Attributes:
        keeps: The bundles that stay offered, below those to be made.
        steps: What to make, in this order.
        is_urgent: What is offered now may not be any longer, whether or not the steps succeed.
    """

    keeps: tuple[Bundle, ...]
    steps: tuple[Step, ...]
    is_urgent: bool = False


def plan_bundles(
    offered: tuple[Bundle, ...],
    tips: Mapping[RefName, ObjectId],
    refs: Mapping[RefName, ObjectId],
    *,
    token: int,
    is_reachable: Callable[[RefName, ObjectId], bool],
) -> BundlePlan:
    """Decide which bundles to make.

    Args:
        offered: The bundles there are, the base first.
        tips: What a client has that took them all.
        refs: What the mirror has: branches and tags.
        token: The next creation token, larger than all before.
        is_reachable: Whether the old tip of a ref is reachable from the refs of now.
    """
    if not refs:
        return BundlePlan((), (), is_urgent=bool(offered))
    base = BundlePlan((), (Step(refs, (), token),))
    if not offered:
        return base
    tips_now = set(refs.values())
    for name, oid in tips.items():
        if oid not in tips_now and not is_reachable(name, oid):
            return BundlePlan((), base.steps, is_urgent=True)
    changed = {name: oid for name, oid in refs.items() if tips.get(name) != oid}
    if not changed:
        return BundlePlan(offered, ())
    kept = {name: oid for name, oid in tips.items() if name in refs}
    if not kept:
        return base
    step = Step(changed, _prerequisites(kept, changed), token)
    if not step.prerequisites:
        return base
    if len(offered) <= INCREMENTS_MAX:
        return BundlePlan(offered, (step,))
    return BundlePlan((), (Step(kept, (), offered[-1].token), step))


def _prerequisites(
    kept: Mapping[RefName, ObjectId], changed: Mapping[RefName, ObjectId]
) -> tuple[ObjectId, ...]:
    """Choose commits that the reader has from the bundles before.

    Branches alone: older clients make refs of no others, and look for what they must have below
    their refs.
    """
    branches = [name for name in kept if name.startswith(BRANCHES)]
    branches.sort(key=lambda name: (name not in changed, name))
    return tuple(dict.fromkeys(kept[name] for name in branches[:PREREQUISITES_MAX]))
