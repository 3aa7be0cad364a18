import json
from typing import Any

import pytest
from multidict import CIMultiDict

from mirror.errors import ProtocolError, Unauthenticated
from mirror.upstream.forges import (
    UNKNOWN,
    Ignored,
    Ping,
    Push,
    RefChange,
    Tip,
    WebhookEvent,
    bitbucket,
)
from mirror.upstream.forges.payload import CHANGES_MAX
from mirror.wire.names import ObjectId, RefName
from tests.upstream.forge_samples import PAYLOADS, digest

SECRET = b"It's a Secret to Everybody"
OLD = ObjectId(b"1e65c05c1d5171631d92438a13901ca7dae9618c")
NEW = ObjectId(b"709d658dc5b6d6afcd46049c2f332ee3f515a67d")
ZERO = "0" * 40
BRANCH = b"refs/heads/name-of-branch"


def cloud() -> Any:
    return json.loads((PAYLOADS / "bitbucket" / "push.json").read_bytes())


def data_center() -> Any:
    return json.loads((PAYLOADS / "bitbucket" / "data-center-refs-changed.json").read_bytes())


def parse(event: str, source: object, **headers: str) -> WebhookEvent:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body = json.dumps(source).encode()
    return bitbucket.parse(CIMultiDict({"X-Event-Key": event, **named}), body)


def verify(headers: dict[str, str]) -> int:
    return bitbucket.verify(CIMultiDict(headers), b"body", secrets=[b"old", SECRET], now=0.0)


def test_the_signature_of_atlassian_s_documentation_is_genuine() -> None:
    """Taken from support.atlassian.com, "Manage webhooks", "Examples"."""
    signature = "sha256=a4771c39fbe90f317c7824e83ddef3caae9cb3d976c214ace1f2937e133263c9"
    headers = CIMultiDict({"X-Hub-Signature": signature})
    secrets = [b"It's a Secret to Everybody"]
    assert bitbucket.verify(headers, b"Hello World!", secrets=secrets, now=0.0) == 0


@pytest.mark.parametrize(
    ("headers", "complaint"),
    [
        ({}, "set the secret of the webhook"),
        ({"X-Event-Key": "diagnostics:ping"}, "this connection test is not signed"),
        ({"X-Hub-Signature": digest(b"body", SECRET)}, "must read sha256="),
        ({"X-Hub-Signature": "sha256="}, "does not fit the body"),
        ({"X-Hub-Signature": "sha256=" + "00" * 32}, "does not fit the body"),
        ({"X-Hub-Signature-256": f"sha256={digest(b'body', SECRET)}"}, "set the secret"),
    ],
)
def test_a_signature_that_proves_nothing_is_refused_with_what_is_wrong(
    headers: dict[str, str], complaint: str
) -> None:
    with pytest.raises(Unauthenticated, match=complaint):
        verify(headers)


@pytest.mark.parametrize(
    ("kind", "has_old", "has_new", "expected"),
    [
        ("branch", True, True, RefChange(RefName(BRANCH), OLD, NEW)),
        ("branch", False, True, RefChange(RefName(BRANCH), None, NEW)),
        ("branch", True, False, RefChange(RefName(BRANCH), OLD, None)),
        ("tag", False, True, RefChange(RefName(b"refs/tags/name-of-branch"), None, UNKNOWN)),
        ("tag", True, False, RefChange(RefName(b"refs/tags/name-of-branch"), UNKNOWN, None)),
        ("tag", True, True, RefChange(RefName(b"refs/tags/name-of-branch"), UNKNOWN, UNKNOWN)),
    ],
)
def test_cloud_says_which_ref_changed(
    kind: str, has_old: bool, has_new: bool, expected: RefChange
) -> None:
    source = cloud()
    [change] = source["push"]["changes"]
    for side, is_there in (("old", has_old), ("new", has_new)):
        change[side]["type"] = kind
        if not is_there:
            change[side] = None
    event = parse("repo:push", source)
    assert isinstance(event, Push)
    assert event.changes == (expected,)
    assert event.repository_urls == ("https://api.bitbucket.org/bitbucket/bitbucket",)
    assert event.default_branch is None


def test_cloud_s_main_branch_is_the_default_branch() -> None:
    source = cloud()
    source["repository"]["mainbranch"] = {"type": "branch", "name": "main"}
    event = parse("repo:push", source)
    assert isinstance(event, Push)
    assert event.default_branch == b"refs/heads/main"


@pytest.mark.parametrize(
    ("ref", "old", "new", "before", "after"),
    [
        ("refs/heads/main", OLD.decode(), NEW.decode(), OLD, NEW),
        ("refs/heads/main", ZERO, NEW.decode(), None, NEW),
        ("refs/heads/main", OLD.decode(), ZERO, OLD, None),
        ("refs/tags/v1", ZERO, NEW.decode(), None, UNKNOWN),
        ("refs/tags/v1", OLD.decode(), ZERO, UNKNOWN, None),
    ],
)
def test_data_center_says_which_ref_changed(
    ref: str, old: str, new: str, before: Tip, after: Tip
) -> None:
    source = data_center()
    source["changes"] = [{"ref": {"id": ref}, "refId": ref, "fromHash": old, "toHash": new}]
    event = parse("repo:refs_changed", source)
    assert isinstance(event, Push)
    assert event.changes == (RefChange(RefName(ref.encode()), before, after),)


def test_a_real_delivery_of_data_center_names_its_repository_as_it_is_cloned() -> None:
    event = parse("repo:refs_changed", data_center())
    assert isinstance(event, Push)
    assert event.repository_urls == ("https://server.bitbucket.local/scm/~gopher/webhook-test.git",)
    assert [change.ref for change in event.changes] == [b"refs/heads/feature/wip"]


def test_a_change_of_something_else_means_that_any_ref_may_have_changed() -> None:
    source = cloud()
    other = json.loads(json.dumps(source["push"]["changes"][0]))
    other["new"]["type"] = "bookmark"
    source["push"]["changes"].append(other)
    event = parse("repo:push", source)
    assert isinstance(event, Push)
    assert event.changes == ()


@pytest.mark.parametrize(("count", "listed"), [(0, 0), (CHANGES_MAX, CHANGES_MAX), (20_000, 0)])
@pytest.mark.parametrize("event", ["repo:push", "repo:refs_changed"])
def test_a_push_of_very_many_refs_is_one_of_any_ref(event: str, count: int, listed: int) -> None:
    source = cloud() if event == "repo:push" else data_center()
    changes = source["push"] if event == "repo:push" else source
    changes["changes"] *= count
    push = parse(event, source)
    assert isinstance(push, Push)
    assert len(push.changes) == listed


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({}, "neither old nor new"),
        ({"old": None, "new": None}, "neither old nor new"),
        ({"new": {"type": "branch"}}, "no name"),
        ({"new": {"name": "main"}}, "no type"),
        ({"new": {"type": "branch", "name": "main"}}, "no hash"),
        ({"new": {"type": "branch", "name": "a..b", "target": {"hash": "a" * 40}}}, "ref name"),
        ({"new": {"type": "branch", "name": "main", "target": {"hash": "zz"}}}, "object id"),
        ("main", "an object as entry of changes"),
    ],
)
def test_a_change_that_makes_no_sense_is_refused_with_the_reason(
    change: object, complaint: str
) -> None:
    source = cloud()
    source["push"]["changes"] = [change]
    with pytest.raises(ProtocolError, match=complaint):
        parse("repo:push", source)


@pytest.mark.parametrize("links", [{}, {"clone": []}, {"clone": [{"name": "ssh", "href": "x"}]}])
def test_a_delivery_of_data_center_without_a_link_names_no_repository(links: object) -> None:
    source = data_center()
    source["repository"]["links"] = links
    with pytest.raises(ProtocolError, match="names no repository"):
        parse("repo:refs_changed", source)


def test_a_signed_connection_test_is_a_ping_and_other_events_are_ignored() -> None:
    assert isinstance(parse("diagnostics:ping", {"test": True}), Ping)
    ignored = parse("pullrequest:created", {})
    assert isinstance(ignored, Ignored)
    assert ignored.kind == "pullrequest:created"


def test_two_pushes_under_one_request_id_are_two_deliveries() -> None:
    """A proxy may write its own X-Request-Id."""
    other = data_center()
    other["changes"] = []
    one, two = (
        parse("repo:refs_changed", source, X_Request_Id="id") for source in (data_center(), other)
    )
    assert one.delivery != two.delivery
    again = parse("repo:refs_changed", other, X_Request_Id="id")
    assert again.delivery == two.delivery
