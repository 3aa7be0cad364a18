"""Any small history, any request: the reader gets what it lacks, in a form that it can use."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mirror.repository.packing.engine import PackEngine, PackRequest
from mirror.wire.filters import ObjectFilter
from mirror.wire.names import ObjectId
from tests.repository.histories import Change, Scratch
from tests.repository.judge import Judge
from tests.repository.packing.building import build
from tests.repository.strategies import changes


@dataclass(frozen=True)
class Plan:
    """A history and what somebody asks of it; numbers are places among its commits, then tags."""

    changes: Sequence[Change]
    tagged: Sequence[int]
    repacked: bool
    wants: Sequence[int]
    haves: Sequence[int]
    shallow: Sequence[int]
    filter: ObjectFilter | None


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    made = draw(changes())
    tagged = draw(st.lists(st.integers(0, len(made) - 1), max_size=3))
    anything = st.integers(0, len(made) + len(tagged) - 1)
    some_commits = st.lists(st.integers(0, len(made) - 1), max_size=2)
    filters = st.builds(
        ObjectFilter,
        st.sampled_from([None, None, 0, 1, 80]),
        st.sampled_from([None, None, 0, 1, 2, 3]),
        st.sampled_from([None, None, *(frozenset({kind}) for kind in (b"blob", b"tree"))]),
    )
    return Plan(
        made,
        tagged,
        draw(st.booleans()),
        draw(st.lists(anything, min_size=1, max_size=3)),
        draw(st.lists(anything, max_size=4)),
        draw(st.one_of(st.just([]), some_commits)),
        draw(st.none() | filters.filter(lambda one: one != ObjectFilter())),
    )


def make(scratch: Scratch, plan: Plan) -> list[ObjectId]:
    """Make the history and return its commits and tags."""
    oids = scratch.commits(*plan.changes)
    for number, place in enumerate(plan.tagged):
        oids.append(scratch.tag(oids[place], f"v{number}"))
    if plan.repacked:
        scratch.refs({f"refs/tags/t{number}": oid for number, oid in enumerate(oids)})
        scratch.git("repack", "-adfq", "--window=20", "--depth=20")
    return oids


@settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(plan=plans(), thin=st.booleans(), ofs_delta=st.booleans())
async def test_a_reader_of_any_history_gets_what_it_lacks(
    engine: PackEngine, plan: Plan, thin: bool, ofs_delta: bool
) -> None:
    with tempfile.TemporaryDirectory() as name:
        scratch = Scratch(Path(name) / "mirror.git")
        oids = make(scratch, plan)
        judge = Judge(scratch, Path(name) / "judge")
        repository = scratch.open()
        request = PackRequest(
            wants=tuple(oids[place] for place in plan.wants),
            haves=tuple(oids[place] for place in plan.haves),
            shallow=frozenset(oids[place] for place in plan.shallow),
            filter=plan.filter,
            thin=thin and plan.filter is None,
            ofs_delta=ofs_delta,
        )
        received = judge.check(request, await build(engine, repository, request))
        if plan.filter is None:
            judge.check_history(request, received)
        if not plan.haves and (plan.filter is None or len(plan.filter.specs()) == 1):
            assert received.oids == judge.git_sends(request)
        repository.close()
