"""What every forge's receiver must do: one suite, all of `RECEIVERS` pass it."""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from mirror.errors import MirrorError, ProtocolError, Unauthenticated
from mirror.upstream.forges import RECEIVERS, Ignored, Ping, Push, Receiver, repository_key
from mirror.upstream.forges.payload import HEADER_WORD_LENGTH_MAX
from mirror.wire.names import is_ref_name

PAYLOADS = Path(__file__).parent / "payloads"
SECRET = b"It's a Secret to Everybody"
NOW = 1_740_000_000.5


@dataclass(frozen=True)
class Sample:
    """How one forge sends a push: headers it signs with, and a body."""

    forge: str
    signed: Callable[[bytes, bytes], CIMultiDict[str]]
    events: tuple[CIMultiDict[str], ...]
    payloads: tuple[bytes, ...]

    @property
    def receiver(self) -> Receiver:
        return RECEIVERS[self.forge]


def by_github(body: bytes, secret: bytes) -> CIMultiDict[str]:
    digest = hmac.new(secret, body, hashlib.sha256).hexdigest()
    return CIMultiDict({"x-hub-signature-256": f"sha256={digest}"})


def by_gitlab(body: bytes, secret: bytes) -> CIMultiDict[str]:
    timestamp = int(NOW)
    digest = hmac.new(secret, b"id-1.%d.%b" % (timestamp, body), hashlib.sha256).digest()
    return CIMultiDict(
        {
            "Webhook-Id": "id-1",
            "Webhook-Timestamp": str(timestamp),
            "Webhook-Signature": f"v1,{base64.b64encode(digest).decode()}",
        }
    )


def payloads(forge: str) -> tuple[bytes, ...]:
    return tuple(path.read_bytes() for path in sorted((PAYLOADS / forge).glob("*.json")))


def github_event(event: str, content_type: str = "application/json") -> CIMultiDict[str]:
    return CIMultiDict({"X-GitHub-Event": event, "Content-Type": content_type})


FORM = "application/x-www-form-urlencoded"
GITHUB = Sample(
    "github",
    by_github,
    (
        *map(github_event, ("push", "create", "delete", "ping", "issues")),
        github_event("push", FORM),
    ),
    payloads("github"),
)
GITLAB = Sample(
    "gitlab",
    by_gitlab,
    tuple(
        CIMultiDict({"X-Gitlab-Event": event})
        for event in ("Push Hook", "Tag Push Hook", "System Hook", "Issue Hook")
    ),
    payloads("gitlab"),
)
SAMPLES = (GITHUB, GITLAB)
any_sample = st.sampled_from(SAMPLES)
each_sample = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.forge)

any_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()  # NaN and infinity too: json.dumps writes them
    | st.text(st.characters())  # half surrogate pairs too
    | st.sampled_from(["refs/heads/..", "refs/heads/main", "main", "0" * 40, "a" * 40, "tag", ""]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def test_every_receiver_is_in_this_suite() -> None:
    assert {sample.forge for sample in SAMPLES} == set(RECEIVERS)


@each_sample
def test_a_signature_proves_which_of_several_secrets_made_it(sample: Sample) -> None:
    headers = sample.signed(b"body", SECRET)
    for secrets, position in (([SECRET], 0), ([b"", b"old", SECRET], 2), ([SECRET, SECRET], 0)):
        proven = sample.receiver.verify(headers, b"body", secrets=secrets, now=NOW)
        assert proven == position


@each_sample
@pytest.mark.parametrize("secrets", [[], [b""], [b"", b""]])
def test_without_a_secret_nothing_is_genuine(sample: Sample, secrets: list[bytes]) -> None:
    headers = sample.signed(b"body", b"")
    with pytest.raises(Unauthenticated, match="no webhook secret is configured"):
        sample.receiver.verify(headers, b"body", secrets=secrets, now=NOW)


@each_sample
def test_an_empty_secret_beside_a_real_one_proves_nothing(sample: Sample) -> None:
    headers = sample.signed(b"body", b"")
    with pytest.raises(Unauthenticated):
        sample.receiver.verify(headers, b"body", secrets=[b"", SECRET], now=NOW)


@each_sample
def test_a_request_without_any_signature_is_told_what_to_set(sample: Sample) -> None:
    with pytest.raises(Unauthenticated, match="set the"):
        sample.receiver.verify(CIMultiDict(), b"body", secrets=[SECRET], now=NOW)


@given(any_sample, st.binary(min_size=1), st.data())
def test_any_changed_byte_of_the_body_breaks_the_signature(
    sample: Sample, body: bytes, data: st.DataObject
) -> None:
    headers = sample.signed(body, SECRET)
    changed = data.draw(one_byte_changed(body))
    with pytest.raises(Unauthenticated):
        sample.receiver.verify(headers, changed, secrets=[SECRET], now=NOW)


@given(any_sample, st.binary(min_size=1), st.binary(min_size=1, max_size=64), st.data())
def test_any_changed_byte_of_the_secret_breaks_the_signature(
    sample: Sample, body: bytes, secret: bytes, data: st.DataObject
) -> None:
    changed = data.draw(one_byte_changed(secret))
    if secret.rstrip(b"\0") == changed.rstrip(b"\0"):
        return  # HMAC pads keys with zero bytes: these two are one key
    headers = sample.signed(body, changed)
    with pytest.raises(Unauthenticated):
        sample.receiver.verify(headers, body, secrets=[secret], now=NOW)


@st.composite
def one_byte_changed(draw: st.DrawFn, original: bytes) -> bytes:
    position = draw(st.integers(0, len(original) - 1))
    difference = draw(st.integers(1, 255))
    changed = bytearray(original)
    changed[position] ^= difference
    return bytes(changed)


any_header = st.text(st.characters()) | st.sampled_from(
    ["", "sha256=", "sha1=00", "v1,", "v1, v1,AAAA", str(int(NOW)), "1" * 5000, "\udcff", "\ud800"]
)


@given(
    any_sample,
    st.dictionaries(
        st.sampled_from(
            [
                "X-Hub-Signature-256",
                "X-Hub-Signature",
                "X-Gitlab-Token",
                "webhook-id",
                "webhook-timestamp",
                "webhook-signature",
            ]
        ),
        any_header,
    ),
)
def test_whatever_the_headers_the_only_refusal_is_unauthenticated(
    sample: Sample, headers: dict[str, str]
) -> None:
    with pytest.raises(Unauthenticated):
        sample.receiver.verify(CIMultiDict(headers), b"body", secrets=[SECRET], now=NOW)


@each_sample
def test_a_refusal_names_neither_the_secret_nor_the_right_signature(sample: Sample) -> None:
    right = sample.signed(b"body", SECRET)
    wrong = sample.signed(b"body", b"another")
    with pytest.raises(Unauthenticated) as refusal:
        sample.receiver.verify(wrong, b"body", secrets=[SECRET], now=NOW)
    message = str(refusal.value) + repr(refusal.value.__cause__)
    assert SECRET.decode() not in message
    name = {"github": "X-Hub-Signature-256", "gitlab": "webhook-signature"}[sample.forge]
    assert right[name].removeprefix("sha256=").removeprefix("v1,") not in message


def assert_event_or_protocol_error(sample: Sample, headers: CIMultiDict[str], body: bytes) -> None:
    try:
        event = sample.receiver.parse(headers, body)
    except MirrorError as error:
        assert type(error) is ProtocolError
        assert str(error)
        return
    assert len(event.delivery) <= 2 * HEADER_WORD_LENGTH_MAX
    match event:
        case Push():
            assert event.repository_urls
            assert all(is_ref_name(change.ref) for change in event.changes)
        case Ping() | Ignored():
            pass
    event_text = repr(event)
    event_text.encode()  # fit for a log


@given(any_sample, st.data(), st.binary())
def test_garbage_is_an_event_or_a_protocol_error(
    sample: Sample, data: st.DataObject, body: bytes
) -> None:
    headers = data.draw(st.sampled_from(sample.events))
    assert_event_or_protocol_error(sample, headers, body)


@given(any_sample, st.data(), any_json)
def test_any_json_is_an_event_or_a_protocol_error(
    sample: Sample, data: st.DataObject, value: object
) -> None:
    headers = data.draw(st.sampled_from(sample.events))
    assert_event_or_protocol_error(sample, headers, json.dumps(value).encode())


@given(any_sample, st.data())
def test_a_payload_with_a_changed_value_is_an_event_or_a_protocol_error(
    sample: Sample, data: st.DataObject
) -> None:
    headers = data.draw(st.sampled_from(sample.events))
    changed = deepcopy(json.loads(data.draw(st.sampled_from(sample.payloads))))
    node = changed
    while True:
        keys = sorted(node) if isinstance(node, dict) else range(len(node))
        key = data.draw(st.sampled_from(keys))
        if not node[key] or not isinstance(node[key], dict | list) or data.draw(st.booleans()):
            break
        node = node[key]
    if data.draw(st.booleans()):
        node[key] = data.draw(any_json)
    else:
        del node[key]
    assert_event_or_protocol_error(sample, headers, json.dumps(changed).encode())


@given(
    any_sample,
    st.dictionaries(
        st.sampled_from(["X-GitHub-Event", "X-GitHub-Delivery", "Content-Type", "X-Gitlab-Event"])
        | st.sampled_from(["Idempotency-Key", "X-Gitlab-Event-UUID", "webhook-id"]),
        any_header,
    ),
)
def test_whatever_the_headers_the_outcome_is_an_event_or_a_protocol_error(
    sample: Sample, headers: dict[str, str]
) -> None:
    assert_event_or_protocol_error(sample, CIMultiDict(headers), sample.payloads[0])


@each_sample
@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b"9" * 5000, "not JSON"),
        (b"[]", "expected an object as payload, got list"),
        (b"null", "expected an object as payload, got NoneType"),
        (b'{"repository": NaN}', "NaN is not a JSON value"),
        (b'{"ref": -Infinity}', "-Infinity is not a JSON value"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused_with_the_reason(
    sample: Sample, body: bytes, complaint: str
) -> None:
    with pytest.raises(ProtocolError, match=complaint):
        sample.receiver.parse(sample.events[0], body)


PUSH_OF = {"github": "push-branch-created", "gitlab": "push"}


@each_sample
@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("ref", "main", "not a valid ref name"),
        ("ref", "refs/heads/a..b", "not a valid ref name"),
        ("ref", "refs/heads/\ud800", "half a surrogate pair"),
        ("ref", 7, "expected a string as ref, got int"),
        ("ref", None, "the payload has no ref"),
        ("before", "0" * 39, "expected an object id"),
        ("after", "0" * 64, "expected an object id"),
        ("after", ["a"], "expected a string as after, got list"),
        ("after", "", "the payload has no after"),
        ("repository", "acme/gitops", "expected an object as repository, got str"),
    ],
)
def test_a_push_with_a_field_that_is_wrong_is_refused_with_the_reason(
    sample: Sample, key: str, value: object, complaint: str
) -> None:
    body = changed_push(sample, {key: value})
    with pytest.raises(ProtocolError, match=complaint):
        sample.receiver.parse(sample.events[0], body)


@each_sample
def test_a_push_that_names_no_repository_is_refused(sample: Sample) -> None:
    body = changed_push(sample, {"repository": None, "project": {"git_http_url": "", "url": None}})
    with pytest.raises(ProtocolError, match="names no repository"):
        sample.receiver.parse(sample.events[0], body)


@each_sample
def test_a_push_may_hold_keys_we_do_not_know_and_one_key_twice(sample: Sample) -> None:
    body = changed_push(sample, {"invented": [{"deep": {}}]})
    twice = b'{"ref": "refs/heads/other", ' + body.removeprefix(b"{")
    headers = with_headers(
        sample.events[0], {"X-GitHub-Delivery": "an-id", "Idempotency-Key": "an-id"}
    )
    event = sample.receiver.parse(headers, twice)
    assert isinstance(event, Push)
    assert event == sample.receiver.parse(headers, push_of(sample))


@each_sample
def test_a_repository_without_a_default_branch_is_pushed_to_all_the_same(sample: Sample) -> None:
    key = {"github": "repository", "gitlab": "project"}[sample.forge]
    old = json.loads(push_of(sample))[key]
    event = sample.receiver.parse(
        sample.events[0], changed_push(sample, {key: old | {"default_branch": None}})
    )
    assert isinstance(event, Push)
    assert event.default_branch is None


@each_sample
def test_the_event_s_name_is_needed(sample: Sample) -> None:
    for headers in (CIMultiDict[str](), *unusable_words(sample.events[0])):
        with pytest.raises(ProtocolError, match="expected the event's name in the header X-Git"):
            sample.receiver.parse(headers, push_of(sample))


def unusable_words(headers: CIMultiDict[str]) -> list[CIMultiDict[str]]:
    name = next(iter(headers))
    return [
        with_headers(headers, {name: word}) for word in ("", "push\n", "p\udcffsh", "push" * 100)
    ]


@each_sample
@pytest.mark.parametrize("word", [None, "", "x" * 201, "id\n1", "id-\udcff", "é"])
def test_a_delivery_without_a_usable_id_is_known_by_the_hash_of_its_body(
    sample: Sample, word: str | None
) -> None:
    headers = sample.events[0]
    if word is not None:
        headers = with_headers(headers, {"X-GitHub-Delivery": word, "Idempotency-Key": word})
    body = push_of(sample)
    assert sample.receiver.parse(headers, body).delivery == body_id(body)


@each_sample
def test_every_url_of_the_real_payloads_that_names_a_repository_has_a_key(sample: Sample) -> None:
    event = sample.receiver.parse(sample.events[0], push_of(sample))
    assert isinstance(event, Push)
    assert len({repository_key(url) for url in event.repository_urls}) == 1


def with_headers(headers: CIMultiDict[str], changes: dict[str, str]) -> CIMultiDict[str]:
    changed = headers.copy()
    changed.update(changes)
    return changed


def push_of(sample: Sample) -> bytes:
    return (PAYLOADS / sample.forge / f"{PUSH_OF[sample.forge]}.json").read_bytes()


def changed_push(sample: Sample, changes: dict[str, object]) -> bytes:
    return json.dumps(json.loads(push_of(sample)) | changes).encode()


def body_id(body: bytes) -> str:
    return f"sha256:{hashlib.sha256(body).hexdigest()}"
