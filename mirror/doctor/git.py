"""Polls and fetches with times: of an upstream, and the same through the mirror.

A poll lists the branches and tags; a fetch asks for the newest commit alone, so that its time is
that of the line and of the server, and not that of a large tree.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import inf
from typing import Final

from mirror.doctor.finding import Finding, Verdict, judged, percentile, times
from mirror.errors import MirrorError
from mirror.upstream.remote import Remote
from mirror.wire.client import Listing
from mirror.wire.names import ObjectId

PREFIXES: Final = (b"refs/heads/", b"refs/tags/")

UPSTREAM_SAMPLES: Final = 3
"""Forges count requests."""

MIRROR_SAMPLES: Final = 50

MIRROR_WARNING_MS: Final = 10.0
MIRROR_PROBLEM_MS: Final = 250.0


@dataclass(frozen=True, slots=True)
class _Kind:
    """What is looked at: how often, and what to think of the times."""

    name: str
    count: int
    advice: str
    warning_ms: float
    problem_ms: float


_UPSTREAM: Final = _Kind(
    "upstream", UPSTREAM_SAMPLES, "the log, and the forge's own status page, say more", inf, inf
)
_MIRROR: Final = _Kind(
    "mirror",
    MIRROR_SAMPLES,
    "is this machine busy, or a refresh under way? look at `git-mirror status` and at `top`",
    MIRROR_WARNING_MS,
    MIRROR_PROBLEM_MS,
)


async def examine_upstream(subject: str, remote: Remote) -> list[Finding]:
    """Poll an upstream and fetch from it."""
    return await _examine(subject, remote, _UPSTREAM)


async def examine_mirror(subject: str, remote: Remote) -> list[Finding]:
    """Poll the mirror and fetch from it, often enough for a p99."""
    return await _examine(subject, remote, _MIRROR)


async def _examine(subject: str, remote: Remote, kind: _Kind) -> list[Finding]:
    check = f"poll of the {kind.name}"
    try:
        listing = await _list(remote)  # what the server can do is asked once: that is no poll
        samples = [await _timed(lambda: _list(remote)) for _ in range(kind.count)]
    except MirrorError as error:
        return [Finding(subject, check, Verdict.PROBLEM, str(error), kind.advice)]
    polls = _finding(subject, check, kind, samples, f"{len(listing.refs)} refs")
    return [polls, await _fetch(subject, remote, kind, listing.head)]


async def _fetch(subject: str, remote: Remote, kind: _Kind, commit: ObjectId | None) -> Finding:
    check = f"fetch from the {kind.name}"
    if commit is None:
        return Finding(subject, check, Verdict.NOTE, "no commit yet")
    try:
        size = await remote.fetch_one_commit(commit)
        samples = [await _timed(lambda: remote.fetch_one_commit(commit)) for _ in range(kind.count)]
    except MirrorError as error:
        return Finding(subject, check, Verdict.PROBLEM, str(error), kind.advice)
    return _finding(subject, check, kind, samples, f"{size} bytes")


def _finding(subject: str, check: str, kind: _Kind, samples: list[float], remark: str) -> Finding:
    words, data = times(samples)
    p99 = percentile(samples, 0.99)
    verdict = judged(p99, warning=kind.warning_ms, problem=kind.problem_ms)
    advice = "" if verdict is Verdict.OK else kind.advice
    return Finding(subject, check, verdict, f"{words} ({remark})", advice, data)


def _list(remote: Remote) -> Awaitable[Listing]:
    return remote.list_refs(PREFIXES)


async def _timed(action: Callable[[], Awaitable[object]]) -> float:
    """Return the milliseconds that an action takes."""
    began_at = time.perf_counter()
    await action()
    return (time.perf_counter() - began_at) * 1000
