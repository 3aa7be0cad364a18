"""The batch API of LFS: what is read as what, what is refused, and nothing else raised."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import ClientError, ProtocolError, TooLarge
from mirror.wire.lfs import (
    OBJECTS_MAX,
    SIZE_MAX,
    Action,
    BatchRequest,
    InvalidBatch,
    Pointer,
    Refusal,
    WrongHash,
    encode_batch_answer,
    encode_batch_request,
    encode_error,
    parse_batch_answer,
    parse_batch_request,
)

A, B = Pointer("a" * 64, 5), Pointer("b" * 64, 0)
NOW = 1_750_000_000.0
SECRET = "s3cret"

KEYS = (
    *("operation", "objects", "oid", "size", "transfers", "actions", "download", "href", "header"),
    *("error", "code", "message", "expires_in", "expires_at", "hash_algo"),
)

pointers = st.builds(
    Pointer,
    st.binary(min_size=32, max_size=32).map(bytes.hex),
    st.integers(min_value=0, max_value=SIZE_MAX),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner | st.just("download") | st.just(A.oid),
            max_size=6,
        )
    ),
    max_leaves=20,
)


def request(**changed: Any) -> bytes:
    objects = [{"oid": A.oid, "size": A.size}]
    return json.dumps({"operation": "download", "objects": objects, **changed}).encode()


def answer(**changed: Any) -> bytes:
    """Return an upstream's answer for `A`."""
    action = {"href": f"https://x.example/?sig={SECRET}"}
    described = {"oid": A.oid, "size": A.size, "actions": {"download": action}}
    return json.dumps({"objects": [described | changed]}).encode()


def offered(**changed: Any) -> Action:
    """Return the action that an upstream's answer with such a download gives."""
    download = {"href": "https://x.example/", **changed}
    found = parse_batch_answer(answer(actions={"download": download}), [A], now=NOW)[A.oid]
    assert isinstance(found, Action)
    return found


@given(st.lists(pointers, max_size=5, unique_by=lambda one: one.oid))
def test_what_is_asked_is_read_as_it_was_meant(asked: list[Pointer]) -> None:
    read = parse_batch_request(encode_batch_request(asked))
    assert read == BatchRequest(tuple(asked), is_upload=False)


def test_a_batch_is_read_with_all_that_clients_add_to_it() -> None:
    body = request(ref={"name": "refs/heads/main"}, transfers=["ssh", "basic"], hash_algo="sha256")
    assert parse_batch_request(body) == BatchRequest((A,), is_upload=False)
    assert parse_batch_request(request(ref=None, transfers=[])).pointers == (A,)
    assert parse_batch_request(request(operation="upload")).is_upload


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "it is not JSON"),
        (b"\xff", "it is not JSON"),
        (b"[" * 100_000, "it is not JSON"),
        (b"[]", "must be an object of JSON"),
        (request(operation="delete"), "`operation` must be"),
        (request(transfers=["tus"]), "only the `basic` transfer"),
        (request(objects={}), "`objects` must be a list"),
        (request(objects=[5]), "an object must be"),
        (request(objects=[{"oid": "A" * 64, "size": 1}]), "64 lower-case hex digits"),
        (request(objects=[{"oid": "a" * 63 + "\n", "size": 1}]), "64 lower-case hex digits"),
        (request(objects=[{"oid": "a" * 64 + "\n", "size": 1}]), "64 lower-case hex digits"),
        (request(objects=[{"oid": "a" * 64, "size": -1}]), "no number of bytes"),
        (request(objects=[{"oid": "a" * 64, "size": True}]), "no number of bytes"),
        (request(objects=[{"oid": "a" * 64, "size": 1.0}]), "no number of bytes"),
        (request(objects=[{"oid": "a" * 64, "size": SIZE_MAX + 1}]), "no number of bytes"),
        (request(objects=[{"oid": "a" * 64}]), "no number of bytes"),
        (request(objects=[{"oid": "a" * 64, "size": size} for size in (1, 2)]), "named twice"),
    ],
)
def test_what_is_no_batch_is_refused_with_what_is_wrong(body: bytes, words: str) -> None:
    with pytest.raises(InvalidBatch, match=words) as caught:
        parse_batch_request(body)
    assert caught.value.status == 422


def test_too_many_objects_and_other_hashes_are_refused_as_such() -> None:
    one = {"oid": A.oid, "size": 1}
    assert parse_batch_request(request(objects=[one] * OBJECTS_MAX)).pointers == (
        Pointer(A.oid, 1),
    )
    with pytest.raises(TooLarge, match="ask for 1000 at a time"):
        parse_batch_request(request(objects=[one] * (OBJECTS_MAX + 1)))
    with pytest.raises(WrongHash, match="SHA-256"):
        parse_batch_request(request(hash_algo="sha512"))


@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_garbage_raises_only_what_is_declared(body: bytes) -> None:
    for parse in (parse_batch_request, lambda body: parse_batch_answer(body, [A, B], now=NOW)):
        try:
            parse(body)
        except ClientError as error:
            assert isinstance(error, ProtocolError | TooLarge | WrongHash)


def test_an_answer_says_of_each_object_where_it_is_or_why_not() -> None:
    body = encode_batch_answer([(A, Action("http://x/a", {"K": "v"})), (B, Refusal(404, "no"))])
    assert json.loads(body) == {
        "transfer": "basic",
        "hash_algo": "sha256",
        "objects": [
            {
                "oid": A.oid,
                "size": 5,
                "actions": {"download": {"href": "http://x/a", "header": {"K": "v"}}},
            },
            {"oid": B.oid, "size": 0, "error": {"code": 404, "message": "no"}},
        ],
    }
    assert parse_batch_answer(body, [A, B], now=NOW) == {
        A.oid: Action("http://x/a", {"K": "v"}),
        B.oid: Refusal(404, "no"),
    }
    assert json.loads(encode_error("no")) == {"message": "no"}


def test_an_upstreams_answer_is_about_what_was_asked_and_nothing_else() -> None:
    found = parse_batch_answer(answer(), [B], now=NOW)
    assert found == {B.oid: Refusal(404, "the upstream's answer does not name the object")}
    assert parse_batch_answer(answer(size=7), [A], now=NOW) == {
        A.oid: Refusal(422, "the object has 7 bytes, not 5")
    }
    assert parse_batch_answer(answer(actions={}), [A], now=NOW) == {
        A.oid: Refusal(404, "the upstream offers no download of the object")
    }
    for code, expected in ((410, 410), ("x", 502), (200, 502)):
        refused = answer(error={"code": code, "message": "m" * 900})
        assert parse_batch_answer(refused, [A], now=NOW) == {A.oid: Refusal(expected, "m" * 500)}


def test_an_action_keeps_its_secrets_to_itself_and_leaves_the_connection_to_us() -> None:
    action = offered(
        href=f"https://x.example/?sig={SECRET}",
        header={"X-Token": SECRET, "Host": "evil", "content-length": "5", "Range": "bytes=1-"},
    )
    assert action.href.endswith(SECRET)
    assert action.header == {"X-Token": SECRET}
    assert SECRET not in repr(action)


def test_when_an_action_expires_is_understood_in_both_forms() -> None:
    assert offered().expires_at is None
    assert offered(expires_in=60).expires_at == NOW + 60
    assert offered(expires_in=60, expires_at="2016-11-10T15:29:07Z").expires_at == NOW + 60
    assert offered(expires_at="2016-11-10T15:29:07Z").expires_at == 1_478_791_747
    assert offered(expires_at="2016-11-10T15:29:07").expires_at == 1_478_791_747
    assert offered(expires_in=0, expires_at="0001-01-01T00:00:00Z").expires_at is None
    assert offered(expires_at="soon").expires_at is None


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"{}",
        answer(size="5"),
        answer(actions=[1]),
        answer(actions={"download": {}}),
        answer(actions={"download": {"href": "https://x/ y"}}),
        answer(actions={"download": {"href": "https://x/" + "y" * 20_000}}),
        answer(actions={"download": {"href": "https://x/", "header": {"A b": "c"}}}),
        answer(actions={"download": {"href": "https://x/", "header": {"A": "b\r\nC: d"}}}),
        answer(actions={"download": {"href": "https://x/", "header": {"A": 1}}}),
        answer(
            actions={
                "download": {"href": "https://x/", "header": {f"X-{n}": "" for n in range(33)}}
            }
        ),
        json.dumps({"transfer": "tus", "objects": []}).encode(),
    ],
)
def test_what_no_lfs_server_answers_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_batch_answer(body, [A], now=NOW)
