import json

import pytest
from multidict import CIMultiDict

from mirror.errors import Unauthenticated
from mirror.upstream.forges import UNKNOWN, Ignored, Push, RefChange, Tip, WebhookEvent, gitea
from mirror.wire.names import ObjectId, RefName
from tests.upstream.forge_samples import FORM, PAYLOADS, digest

SECRET = b"It's a Secret to Everybody"
TIP = ObjectId(b"67b56589a45103f891bdee7c0546e5d40bc02001")
OLD = ObjectId(b"28e1879d029cb852e4844d9c718537df08844e03")
URLS = (
    "http://localhost:3000/example/example.git",
    "http://localhost:3000/example/example",
    "git@localhost:example/example.git",
)
DELIVERY = "f6266f16-1bf3-46a5-9ea4-602e06ead473"


def payload(name: str) -> bytes:
    return (PAYLOADS / "gitea" / f"{name}.json").read_bytes()


def changed(name: str, **changes: str) -> bytes:
    return json.dumps(json.loads(payload(name)) | changes).encode()


def parse(event: str, body: bytes, *, prefix: str = "X-Gitea") -> WebhookEvent:
    """Parse as Gitea sends it, with GitHub's and Gogs' names beside its own."""
    names = (prefix, "X-Gogs", "X-GitHub")
    headers = {f"{name}-Event": event for name in names}
    headers |= {f"{name}-Delivery": DELIVERY for name in names}
    return gitea.parse(CIMultiDict(headers | {"Content-Type": "application/json"}), body)


def verify(headers: dict[str, str]) -> int:
    return gitea.verify(CIMultiDict(headers), b"body", secrets=[b"old", SECRET], now=0.0)


@pytest.mark.parametrize("prefix", ["X-Gitea", "X-Forgejo"])
def test_the_signature_is_found_under_either_name(prefix: str) -> None:
    assert verify({f"{prefix}-Signature": digest(b"body", SECRET)}) == 1


@pytest.mark.parametrize(
    ("headers", "complaint"),
    [
        ({}, "set the secret of the webhook"),
        ({"X-Gitea-Signature": ""}, "set the secret of the webhook"),  # sent without a secret
        ({"X-Gitea-Signature": "00" * 32}, "does not fit the body"),
        ({"X-Gitea-Signature": f"sha256={digest(b'body', SECRET)}"}, "does not fit the body"),
        ({"X-Gitea-Signature": digest(b"body", SECRET) + "\udcff"}, "does not fit the body"),
        ({"X-Gitea-Signature": "\ud800"}, "characters no header can hold"),
        ({"X-Hub-Signature-256": f"sha256={digest(b'body', SECRET)}"}, "set the secret"),
    ],
)
def test_a_signature_that_proves_nothing_is_refused_with_what_is_wrong(
    headers: dict[str, str], complaint: str
) -> None:
    with pytest.raises(Unauthenticated, match=complaint):
        verify(headers)


def test_a_form_is_told_which_content_type_to_choose() -> None:
    signed = {"X-Gitea-Signature": digest(b"{}", SECRET), "Content-Type": FORM}
    with pytest.raises(Unauthenticated, match="choose application/json"):
        verify(signed)


@pytest.mark.parametrize("prefix", ["X-Gitea", "X-Forgejo"])
@pytest.mark.parametrize(
    ("event", "body", "ref", "before", "after"),
    [
        ("push", payload("push"), b"refs/heads/master", None, TIP),
        ("push", changed("push", before=OLD.decode()), b"refs/heads/master", OLD, TIP),
        ("push", changed("push", ref="refs/tags/v1"), b"refs/tags/v1", None, UNKNOWN),
        (
            "push",
            changed("push", ref="refs/tags/v1", before=OLD.decode(), after="0" * 40),
            b"refs/tags/v1",
            UNKNOWN,
            None,
        ),
        ("create", payload("create"), b"refs/heads/master", None, UNKNOWN),
        ("create", changed("create", ref="v1", ref_type="tag"), b"refs/tags/v1", None, UNKNOWN),
        ("delete", payload("delete"), b"refs/heads/example3", UNKNOWN, None),
    ],
)
def test_a_payload_says_which_ref_changed(
    prefix: str, event: str, body: bytes, ref: bytes, before: Tip, after: Tip
) -> None:
    assert parse(event, body, prefix=prefix) == Push(
        delivery=DELIVERY,
        repository_urls=URLS,
        changes=(RefChange(RefName(ref), before, after),),
        default_branch=RefName(b"refs/heads/master"),
    )


@pytest.mark.parametrize(
    ("event", "body", "reason"),
    [
        ("issues", b"\xff", "only push, create and delete"),
        ("repository", b"{}", "only push, create and delete"),
        ("create", changed("create", ref_type="commit"), "neither a branch nor a tag"),
    ],
)
def test_other_events_are_ignored_by_name(event: str, body: bytes, reason: str) -> None:
    ignored = parse(event, body)
    assert isinstance(ignored, Ignored)
    assert ignored.kind == event
    assert reason in ignored.reason
