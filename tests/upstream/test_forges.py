"""What every forge's receiver must do: one suite, all of `RECEIVERS` pass it."""

import hashlib
import json
from copy import deepcopy
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from mirror.config import Forge
from mirror.errors import MirrorError, ProtocolError, Unauthenticated
from mirror.upstream.forges import RECEIVERS, RESENTFUL, Ignored, Ping, Push, repository_key
from mirror.upstream.forges.payload import HEADER_WORD_LENGTH_MAX
from mirror.wire.names import is_ref_name
from tests.upstream.forge_samples import NOW, SAMPLES, Sample

SECRET = b"It's a Secret to Everybody"

any_sample = st.sampled_from(SAMPLES)
each_sample = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.forge)
each_flat_sample = pytest.mark.parametrize(
    "sample", [one for one in SAMPLES if one.is_flat], ids=lambda sample: sample.forge
)

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
    assert set(RECEIVERS) == set(Forge)
    assert set(RECEIVERS) > RESENTFUL


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
                "X-Gitea-Signature",
                "X-Forgejo-Signature",
                "Content-Type",
                "X-Event-Key",
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
    digest = right[sample.signature_header].removeprefix("sha256=").removeprefix("v1,")
    assert digest not in message


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
        | st.sampled_from(["Idempotency-Key", "X-Gitlab-Event-UUID", "webhook-id", "X-Event-Key"])
        | st.sampled_from(["X-Gitea-Event", "X-Forgejo-Event", "X-Gitea-Delivery"])
        | st.sampled_from(["X-Forgejo-Delivery", "X-Request-UUID", "X-Request-Id"]),
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


@each_flat_sample
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
    event = sample.receiver.parse(sample.events[0], twice)
    plain = sample.receiver.parse(sample.events[0], sample.push_body)
    assert isinstance(event, Push)
    assert event == replace(plain, delivery=event.delivery)


@each_flat_sample
def test_a_repository_without_a_default_branch_is_pushed_to_all_the_same(sample: Sample) -> None:
    key = "project" if sample.forge == "gitlab" else "repository"
    old = json.loads(sample.push_body)[key]
    event = sample.receiver.parse(
        sample.events[0], changed_push(sample, {key: old | {"default_branch": None}})
    )
    assert isinstance(event, Push)
    assert event.default_branch is None


@each_sample
def test_the_event_s_name_is_needed(sample: Sample) -> None:
    for headers in (CIMultiDict[str](), *unusable_words(sample.events[0])):
        with pytest.raises(ProtocolError, match="expected the event's name in the header X-"):
            sample.receiver.parse(headers, sample.push_body)


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
        headers = with_headers(headers, {sample.delivery_header: word})
    body = sample.push_body
    assert sample.receiver.parse(headers, body).delivery == body_id(body)


@each_sample
def test_a_delivery_is_known_by_the_forge_s_id_of_it(sample: Sample) -> None:
    headers = with_headers(sample.events[0], {sample.delivery_header: "f6266f16-1bf3"})
    one = sample.receiver.parse(headers, sample.push_body)
    assert one.delivery.startswith("f6266f16-1bf3")
    assert sample.receiver.parse(headers, sample.push_body).delivery == one.delivery


@each_sample
def test_every_url_of_the_real_payloads_that_names_a_repository_has_a_key(sample: Sample) -> None:
    event = sample.receiver.parse(sample.events[0], sample.push_body)
    assert isinstance(event, Push)
    keys = [repository_key(url) for url in event.repository_urls]
    assert len({key.path for key in keys if key is not None}) == 1
    assert None not in keys
    by_http = [url for url in event.repository_urls if url.startswith("http")]
    assert len({repository_key(url) for url in by_http}) == 1  # ssh knows no http port


def with_headers(headers: CIMultiDict[str], changes: dict[str, str]) -> CIMultiDict[str]:
    changed = headers.copy()
    changed.update(changes)
    return changed


def changed_push(sample: Sample, changes: dict[str, object]) -> bytes:
    return json.dumps(json.loads(sample.push_body) | changes).encode()


def body_id(body: bytes) -> str:
    return f"sha256:{hashlib.sha256(body).hexdigest()}"
