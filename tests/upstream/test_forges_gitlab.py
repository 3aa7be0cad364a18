import base64
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from mirror.errors import ProtocolError, Unauthenticated
from mirror.upstream.forges import (
    RECEIVERS,
    Ignored,
    Push,
    RefChange,
    WebhookEvent,
    gitlab,
)
from mirror.upstream.forges.payload import CHANGES_MAX
from mirror.wire.names import ObjectId, RefName

PAYLOADS = Path(__file__).parent / "payloads" / "gitlab"
OLD = ObjectId(b"95790bf891e76fee5e1747ab589903a6a1f80f22")
NEW = ObjectId(b"da1560886d4f094c3e6c9ef40349f7d38b5d27d7")
TAG = ObjectId(b"82b3d5ae55f7080f1e6022629cdb57bfae7cccc7")
MAIN = RefName(b"refs/heads/main")
MOVED = RefChange(MAIN, OLD, NEW)
TAGGED = RefChange(RefName(b"refs/tags/v1.0.0"), None, TAG)
DELETED = RefChange(RefName(b"refs/heads/old"), OLD, None)

# The worked example of standardwebhooks.com.
TOKEN = b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BODY = b'{"test": 2432232314}'
SIGNED_AT = 1614265330
SIGNED = {
    "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
    "webhook-timestamp": str(SIGNED_AT),
    "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
}


def payload(name: str) -> bytes:
    return (PAYLOADS / f"{name}.json").read_bytes()


def parse(hook: str, body: bytes, **headers: str) -> WebhookEvent:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return RECEIVERS["gitlab"].parse(CIMultiDict({"X-Gitlab-Event": hook} | named), body)


def verify(headers: dict[str, str], *, secret: bytes = TOKEN, now: float = SIGNED_AT) -> int:
    return gitlab.verify(CIMultiDict(headers), BODY, secrets=[b"another", secret], now=now)


def test_the_signature_of_the_standard_webhooks_example_is_genuine() -> None:
    assert verify(SIGNED) == 1


def test_one_good_signature_among_several_is_enough() -> None:
    both = f"v1,AAAA v1a,BBBB {SIGNED['webhook-signature']}"
    assert verify(SIGNED | {"webhook-signature": both}) == 1


@pytest.mark.parametrize("seconds", [-300, 0, 300])
def test_a_signature_of_the_last_five_minutes_is_genuine(seconds: int) -> None:
    assert verify(SIGNED, now=SIGNED_AT + seconds) == 1


@pytest.mark.parametrize("seconds", [-301, 301, 86_400])
def test_an_older_or_later_signature_is_refused_with_its_age(seconds: int) -> None:
    with pytest.raises(Unauthenticated, match=f"{abs(seconds)} s away from our time"):
        verify(SIGNED, now=SIGNED_AT + seconds)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"webhook-id": None}, "without webhook-id or webhook-timestamp"),
        ({"webhook-timestamp": None}, "without webhook-id or webhook-timestamp"),
        ({"webhook-timestamp": ""}, "a number of seconds"),
        ({"webhook-timestamp": f"-{SIGNED_AT}"}, "a number of seconds"),
        ({"webhook-timestamp": f" {SIGNED_AT}"}, "a number of seconds"),
        ({"webhook-timestamp": f"{SIGNED_AT}.0"}, "a number of seconds"),
        ({"webhook-timestamp": "9" * 5000}, "a number of seconds"),
        ({"webhook-timestamp": "١٦١٤٢٦٥٣٣٠"}, "a number of seconds"),
        ({"webhook-timestamp": str(SIGNED_AT + 1)}, "does not fit the body"),
        ({"webhook-id": "msg_other"}, "does not fit the body"),
        ({"webhook-id": "\ud800"}, "characters no header can hold"),
        ({"webhook-signature": ""}, "does not fit the body"),
        ({"webhook-signature": SIGNED["webhook-signature"][3:]}, "does not fit the body"),
        ({"webhook-signature": SIGNED["webhook-signature"].lower()}, "does not fit the body"),
        ({"webhook-signature": "v1,\udcff"}, "does not fit the body"),
        ({"webhook-signature": None}, "neither X-Gitlab-Token nor webhook-signature came"),
    ],
)
def test_a_signed_request_with_a_wrong_header_is_refused_with_what_is_wrong(
    change: dict[str, str | None], complaint: str
) -> None:
    headers = {name: value for name, value in (SIGNED | change).items() if value is not None}
    with pytest.raises(Unauthenticated, match=complaint):
        verify(headers)


def test_a_secret_that_only_looks_like_a_signing_token_is_the_key_itself() -> None:
    secret = b"whsec_not base64!"
    signature = gitlab._signature(b"1.2.", b"body", secret)
    assert signature is not None
    assert signature != gitlab._signature(b"1.2.", b"body", secret + b"!")


def test_a_signing_token_without_a_key_signs_nothing() -> None:
    secret = b"whsec_"
    assert gitlab._signature(b"1.2.", b"body", secret) is None
    with pytest.raises(Unauthenticated, match="does not fit"):
        verify(SIGNED, secret=secret)


@given(st.binary(min_size=1))
def test_a_signing_token_and_its_key_sign_alike(key: bytes) -> None:
    token = b"whsec_" + base64.b64encode(key)
    assert gitlab._signing_key(token) == key


@pytest.mark.parametrize("secret", ["correct horse", "blåbær", "whsec_MfKQ"])
def test_the_secret_sent_as_token_is_genuine(secret: str) -> None:
    assert verify({"x-gitlab-token": secret}, secret=secret.encode()) == 1


def test_a_token_that_is_not_utf8_is_compared_by_its_bytes() -> None:
    assert verify({"X-Gitlab-Token": "a\udcffb"}, secret=b"a\xffb") == 1


@pytest.mark.parametrize("token", ["", "correct", "correct horse ", "Correct horse", "corréct"])
def test_a_wrong_token_is_refused(token: str) -> None:
    with pytest.raises(Unauthenticated, match="X-Gitlab-Token is wrong"):
        verify({"X-Gitlab-Token": token}, secret=b"correct horse")


def test_of_a_token_and_a_signature_either_one_is_enough() -> None:
    assert verify(SIGNED | {"X-Gitlab-Token": "unknown"}) == 1
    assert verify(SIGNED | {"X-Gitlab-Token": "known"}, secret=b"known", now=0.0) == 1
    with pytest.raises(Unauthenticated, match="webhook-signature does not fit"):
        verify(SIGNED | {"X-Gitlab-Token": "unknown"}, secret=b"known")


@pytest.mark.parametrize(
    ("hook", "name", "changes"),
    [
        ("Push Hook", "push", (MOVED,)),
        ("Push Hook", "push-branch-deleted", (DELETED,)),
        ("Tag Push Hook", "tag-push", (TAGGED,)),
        ("Tag Push Hook", "push", (MOVED,)),  # what the "Test" button sends
        ("System Hook", "system-push", (MOVED,)),
        ("System Hook", "tag-push", (TAGGED,)),
        ("System Hook", "system-repository-update", (MOVED, TAGGED, DELETED)),
    ],
)
def test_a_payload_says_which_refs_changed(
    hook: str, name: str, changes: tuple[RefChange, ...]
) -> None:
    event = parse(hook, payload(name), Idempotency_Key="f5e57fc2")
    assert isinstance(event, Push)
    assert (event.delivery, event.changes, event.default_branch) == ("f5e57fc2", changes, MAIN)
    assert "http://gitlab.example.com/platform/clusters/gitops.git" in event.repository_urls
    assert "git@gitlab.example.com:platform/clusters/gitops.git" in event.repository_urls


def test_an_old_payload_without_a_project_is_known_by_its_repository() -> None:
    source = json.loads(payload("push"))
    del source["project"], source["event_name"]
    event = parse("Push Hook", json.dumps(source).encode())
    assert isinstance(event, Push)
    assert event.default_branch is None
    assert event.repository_urls[0] == "http://gitlab.example.com/platform/clusters/gitops.git"


@pytest.mark.parametrize(
    ("count", "listed"), [(0, 0), (1, 1), (CHANGES_MAX, CHANGES_MAX), (CHANGES_MAX + 1, 0)]
)
def test_an_update_of_very_many_refs_is_one_of_any_ref(count: int, listed: int) -> None:
    source = json.loads(payload("system-repository-update"))
    source["changes"] = source["changes"][:1] * count
    event = parse("System Hook", json.dumps(source).encode())
    assert isinstance(event, Push)
    assert event.changes == (MOVED,) * listed


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (None, "expected a list as changes, got NoneType"),
        ({}, "expected a list as changes, got dict"),
        (["refs/heads/main"], "expected an object as entry of changes, got str"),
        ([{}], "the payload has no ref"),
    ],
)
def test_an_update_without_a_list_of_changes_is_refused(changes: object, complaint: str) -> None:
    source = json.loads(payload("system-repository-update")) | {"changes": changes}
    with pytest.raises(ProtocolError, match=complaint):
        parse("System Hook", json.dumps(source).encode())


@pytest.mark.parametrize(
    ("hook", "body", "kind"),
    [
        ("Issue Hook", b"\xff", "Issue Hook"),
        ("System Hook", payload("system-project-create"), "project_create"),
        ("System Hook", payload("system-project-destroy"), "project_destroy"),
        ("System Hook", payload("system-project-rename"), "project_rename"),
        ("System Hook", b'{"object_kind": "merge_request"}', "merge_request"),
        ("System Hook", b"{}", "System Hook"),
        ("System Hook", b'{"event_name": "%b"}' % (b"x" * 300), "x" * gitlab.KIND_LENGTH_MAX),
    ],
)
def test_other_events_are_ignored_by_name(hook: str, body: bytes, kind: str) -> None:
    event = parse(hook, body)
    assert isinstance(event, Ignored)
    assert event.kind == kind
    assert event.reason


@pytest.mark.parametrize("kind", ["project_rename", "project_transfer"])
def test_a_project_that_moved_is_told_with_both_paths_and_what_to_do(kind: str) -> None:
    source = json.loads(payload("system-project-rename")) | {"event_name": kind}
    event = parse("System Hook", json.dumps(source).encode())
    assert isinstance(event, Ignored)
    assert "'platform/clusters/overlays' is 'platform/clusters/gitops' now" in event.reason
    assert "`upstream`" in event.reason


BODY_ID = f"sha256:{hashlib.sha256(payload('push')).hexdigest()}"


@pytest.mark.parametrize(
    ("headers", "delivery"),
    [
        ({}, BODY_ID),
        ({"Idempotency_Key": "key", "webhook_id": "id", "X_Gitlab_Event_UUID": "uuid"}, "key"),
        ({"webhook_id": "id", "X_Gitlab_Event_UUID": "uuid"}, "id"),
        ({"X_Gitlab_Event_UUID": "uuid"}, f"uuid:{BODY_ID}"),
        ({"Idempotency_Key": "x" * 201, "webhook_id": "id"}, "id"),
    ],
)
def test_a_delivery_is_known_by_what_only_its_repetition_shares(
    headers: dict[str, str], delivery: str
) -> None:
    assert parse("Push Hook", payload("push"), **headers).delivery == delivery
