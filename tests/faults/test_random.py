"""Conversations with a real upstream, spoilt at random places.

After each, the mirror is what it was or what the upstream is, git finds nothing wrong with it, and
nothing is left over. `--fault-rounds=100 --fault-seed=7` plays more of them.

Bytes are spoilt in packs, and in the framing of listings: against a wrong letter in a ref's name
only TLS helps.
"""

import asyncio
import os
from collections import Counter
from random import Random

import pytest

from mirror.demo.forge import HttpBackend
from mirror.errors import MirrorError
from mirror.repository.packing.engine import PackEngine
from tests.faults.proxy import Answer, FaultProxy, Line, Play, fault_proxy
from tests.git_client import Upstream
from tests.refresh.bench import Bench
from tests.refresh.conftest import MakeBench, engine, make_bench

__all__ = ["engine", "make_bench"]


def spoiling(chance: Random, kind: str) -> Play:
    """Make a fault at a random place of an answer."""

    async def play(answer: Answer, line: Line) -> None:
        body, at = answer.body, chance.randrange(len(answer.body))
        if kind == "cut":
            await line.send(answer.head() + body[:at])
            return
        if kind == "garble":
            at = at if answer.operation == "fetch" else at % 4
            body = body[:at] + bytes([body[at] ^ 1 << chance.randrange(8)]) + body[at + 1 :]
        await line.send(answer.head())
        while body:  # "dribble": slowly, in small and large pieces
            size = chance.choice([1, 3, 100, 5000])
            await line.send(body[:size])
            body = body[size:]

    return play


def change(upstream: Upstream, chance: Random, number: int) -> None:
    """Let something happen upstream."""
    branch = f"b{chance.randrange(4)}"
    match chance.randrange(5):
        case 0:
            upstream.commit(
                files={f"noise{number}": os.urandom(chance.choice([10, 300_000])).hex()}
            )
        case 1:
            upstream.history(chance.randrange(1, 30), branch)
        case 2:
            upstream.force("refs/heads/main", upstream.commit(message=f"another {number}"))
        case 3:
            upstream.tag(f"v{number}")
        case _:
            upstream.branches({f"refs/heads/{branch}": upstream.oid()})


def is_unharmed(bench: Bench, before: dict[str, str]) -> bool:
    """Assert that the mirror is whole; tells whether it is what the upstream is."""
    assert not list(bench.staging.iterdir())
    if bench.mirror.snapshot is None:
        assert not bench.path.exists()
        return False
    refs = bench.refs()
    assert refs in (before, bench.upstream.refs())
    stored = {name: oid for name, oid in bench.stored_refs().items() if "git-mirror/" not in name}
    assert stored == refs
    bench.is_whole()
    assert not list((bench.path / "objects").glob("tmp_*"))
    assert not [*bench.path.glob("*.tmp"), *bench.path.rglob("*.lock")]
    return refs == bench.upstream.refs()


async def play_round(bench: Bench, proxy: FaultProxy, chance: Random) -> str:
    before = bench.refs() if bench.mirror.snapshot is not None else {}
    kind = chance.choice(["cut", "cut", "garble", "garble", "dribble"])
    operation = chance.choice(["info/refs", "ls-refs", "fetch", "fetch", "fetch"])
    if operation == "info/refs":
        bench.remote.forget()
    proxy.begin(spoiling(chance, kind), operation)
    try:
        await bench.update()
    except MirrorError:
        outcome = "unchanged"
        is_unharmed(bench, before)
    else:
        outcome = "upstream's"
        assert is_unharmed(bench, before)
    proxy.end()
    return f"{kind} {operation}: {outcome}"


async def test_whatever_breaks_wherever_the_mirror_is_old_or_new_but_whole(
    upstream: Upstream,
    forge: HttpBackend,
    make_bench: MakeBench,
    engine: PackEngine,
    pytestconfig: pytest.Config,
    request: pytest.FixtureRequest,
) -> None:
    rounds: int = pytestconfig.getoption("--fault-rounds")
    seed: int = pytestconfig.getoption("--fault-seed")
    chance = Random(f"{seed} {request.node.name}")
    upstream.history(30)
    counts: Counter[str] = Counter()
    async with fault_proxy(forge) as proxy:
        bench = make_bench(upstream, engine=engine, url=proxy.repository_url(upstream.name))
        for number in range(rounds):
            counts[await play_round(bench, proxy, chance)] += 1
            await asyncio.to_thread(change, upstream, chance, number)
        await bench.update()
        bench.mirrors()
    print(f"seed {seed}, {rounds} rounds:", dict(sorted(counts.items())))  # noqa: T201 - with -rP
