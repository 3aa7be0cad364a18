"""What could not be mirrored is remembered for a while."""

import pytest

from mirror.errors import MirrorError, NotUpstream, UpstreamRefused, UpstreamUnavailable
from mirror.refresh.pull_through import refusals
from mirror.refresh.pull_through.refusals import Refusals


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (NotUpstream("404"), 30.0),
        (UpstreamRefused("403"), 5.0),
        (UpstreamUnavailable("500"), 5.0),
        (UpstreamUnavailable("429", retry_after_seconds=77.0), 77.0),
        (UpstreamUnavailable("429", retry_after_seconds=1.0), 5.0),
    ],
)
def test_it_is_remembered_as_long_as_its_reason_lasts(error: MirrorError, seconds: float) -> None:
    known = Refusals()
    known.add("a", error, 1000.0)
    assert known.find("a", 1000.0 + seconds - 0.1) is error
    assert known.find("a", 1000.0 + seconds) is None
    assert known.find("b", 1000.0) is None


def test_it_may_be_forgotten() -> None:
    known = Refusals()
    known.add("a", NotUpstream("404"), 0.0)
    known.forget("a")
    assert known.find("a", 0.0) is None


def test_names_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "REFUSALS_MAX", 2)
    known = Refusals()
    for name in "abac":
        known.add(name, NotUpstream(name), 0.0)
    assert [known.find(name, 0.0) is None for name in "abc"] == [False, True, False]
