import json
from pathlib import Path
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from mirror.errors import ProtocolError, Unauthenticated
from mirror.upstream.forges import (
    RECEIVERS,
    UNKNOWN,
    Ignored,
    Ping,
    Push,
    RefChange,
    Tip,
    WebhookEvent,
    github,
)
from mirror.wire.names import ObjectId, RefName

PAYLOADS = Path(__file__).parent / "payloads" / "github"
SECRET = b"It's a Secret to Everybody"
SIGNATURE = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
TIP = ObjectId(b"6113728f27ae82c7b1a177c8d03f9e96e0adf246")
URLS = (
    "https://github.com/Codertocat/Hello-World.git",
    "https://github.com/Codertocat/Hello-World",
    "git@github.com:Codertocat/Hello-World.git",
    "git://github.com/Codertocat/Hello-World.git",
)
API_URL = "https://api.github.com/repos/Codertocat/Hello-World"


def payload(name: str) -> bytes:
    return (PAYLOADS / f"{name}.json").read_bytes()


def parse(
    event: str, body: bytes, *, content_type: str = "application/json; charset=utf-8"
) -> WebhookEvent:
    headers = CIMultiDict(
        {
            "X-GitHub-Event": event,
            "X-GitHub-Delivery": "72d3162e-cc78-11e3-81ab-4c9367dc0958",
            "Content-Type": content_type,
        }
    )
    return RECEIVERS["github"].parse(headers, body)


def verify(headers: dict[str, str]) -> int:
    return github.verify(CIMultiDict(headers), b"Hello, World!", secrets=[SECRET], now=0.0)


def test_the_signature_of_github_s_documentation_is_genuine() -> None:
    assert github.signature(b"Hello, World!", SECRET) == SIGNATURE
    assert verify({"x-hub-signature-256": SIGNATURE}) == 0


@pytest.mark.parametrize(
    ("headers", "complaint"),
    [
        ({}, "no X-Hub-Signature-256 header"),
        ({"X-Hub-Signature": "sha1=00"}, "only the SHA-1 signature came"),
        ({"X-Hub-Signature-256": "sha1=00"}, "must read sha256="),
        ({"X-Hub-Signature-256": SIGNATURE.removeprefix("sha256=")}, "must read sha256="),
        ({"X-Hub-Signature-256": "sha256="}, "does not fit the body"),
        ({"X-Hub-Signature-256": SIGNATURE[:-1]}, "does not fit the body"),
        ({"X-Hub-Signature-256": SIGNATURE.upper()}, "must read sha256="),
        ({"X-Hub-Signature-256": SIGNATURE[:-1] + "\N{FULLWIDTH DIGIT SEVEN}"}, "does not fit"),
        ({"X-Hub-Signature-256": SIGNATURE + "\udcff"}, "does not fit the body"),
        ({"X-Hub-Signature-256": SIGNATURE + "\ud800"}, "characters no header can hold"),
    ],
)
def test_a_signature_that_proves_nothing_is_refused_with_what_is_wrong(
    headers: dict[str, str], complaint: str
) -> None:
    with pytest.raises(Unauthenticated, match=complaint):
        verify(headers)


@given(st.integers(len("sha256="), len(SIGNATURE) - 1), st.sampled_from("0123456789abcdef"))
def test_a_signature_with_any_digit_changed_is_refused(position: int, digit: str) -> None:
    changed = SIGNATURE[:position] + digit + SIGNATURE[position + 1 :]
    if changed == SIGNATURE:
        return
    with pytest.raises(Unauthenticated):
        verify({"X-Hub-Signature-256": changed})


@pytest.mark.parametrize(
    ("event", "name", "ref", "before", "after"),
    [
        ("push", "push-branch-created", b"refs/heads/master", None, TIP),
        ("push", "push-tag-created", b"refs/tags/simple-tag", None, TIP),
        ("push", "push-tag-deleted", b"refs/tags/simple-tag", TIP, None),
        ("create", "create-tag", b"refs/tags/simple-tag", None, UNKNOWN),
        ("delete", "delete-tag", b"refs/tags/simple-tag", UNKNOWN, None),
    ],
)
def test_a_real_payload_says_which_ref_changed(
    event: str, name: str, ref: bytes, before: Tip, after: Tip
) -> None:
    urls = URLS if event == "push" else (*URLS[:2], API_URL, *URLS[2:])
    assert parse(event, payload(name)) == Push(
        delivery="72d3162e-cc78-11e3-81ab-4c9367dc0958",
        repository_urls=urls,
        changes=(RefChange(RefName(ref), before, after),),
        default_branch=RefName(b"refs/heads/master"),
    )


def test_a_push_onto_a_branch_names_both_tips() -> None:
    old = "a10867b14bb761a232cd80139fbd4c0d33264240"
    body = json.dumps(json.loads(payload("push-branch-created")) | {"before": old}).encode()
    event = parse("push", body)
    assert isinstance(event, Push)
    change = RefChange(RefName(b"refs/heads/master"), ObjectId(old.encode()), TIP)
    assert event.changes == (change,)


@pytest.mark.parametrize("event", ["create", "delete"])
def test_a_created_or_deleted_branch_is_told_from_a_tag_of_that_name(event: str) -> None:
    source = json.loads(payload("create-tag")) | {"ref_type": "branch", "ref": "feature/ø"}
    change = parse(event, json.dumps(source).encode())
    assert isinstance(change, Push)
    assert [change.ref for change in change.changes] == ["refs/heads/feature/ø".encode()]


def test_github_enterprise_server_names_its_own_host() -> None:
    event = parse("create", payload("create-tag-enterprise-server"))
    assert isinstance(event, Push)
    assert "https://octocoders.github.io/Codertocat/Hello-World.git" in event.repository_urls


def test_the_home_page_an_owner_sets_is_not_taken_for_the_repository() -> None:
    source = json.loads(payload("push-branch-created"))
    source["repository"] |= {"homepage": "https://github.com/acme/other", "mirror_url": "x://y/z"}
    event = parse("push", json.dumps(source).encode())
    assert isinstance(event, Push)
    assert event.repository_urls == URLS


def test_a_created_repository_is_ignored() -> None:
    source = json.loads(payload("create-tag")) | {"ref_type": "repository", "ref": None}
    event = parse("create", json.dumps(source).encode())
    assert isinstance(event, Ignored)
    assert (event.kind, event.reason) == ("create", "neither a branch nor a tag")


def test_a_ping_names_its_repository_or_none_for_an_organisation() -> None:
    event = parse("ping", payload("ping"))
    assert isinstance(event, Ping)
    assert event.repository_urls[0] == "https://github.com/Octocoders/Hello-World.git"
    event = parse("ping", payload("ping-organization"))
    assert isinstance(event, Ping)
    assert event.repository_urls == ()


def test_other_events_are_ignored_without_a_look_at_their_body() -> None:
    event = parse("issues", b"\xff", content_type="text/plain")
    assert event == Ignored(
        delivery="72d3162e-cc78-11e3-81ab-4c9367dc0958",
        kind="issues",
        reason="only push, create and delete change refs",
    )


def test_a_form_says_what_the_same_json_says() -> None:
    source = json.loads(payload("push-branch-created")) | {"ref": "refs/heads/blåbær+fløte"}
    text = json.dumps(source, ensure_ascii=False)
    form = urlencode({"payload": text}).encode()
    assert parse("push", form, content_type="application/x-www-form-urlencoded") == parse(
        "push", text.encode()
    )


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"", "one field payload"),
        (b"other=1", "one field payload"),
        (b"payload=%7B%7D&payload=%7B%7D", "one field payload"),
        (b"payload=1&" * 20, "not an HTML form"),
        (b"payload=\xff", "not an HTML form"),
        (b"payload=%ff", "not an HTML form"),
        (b"payload=%7B", "not JSON"),
    ],
)
def test_a_form_without_one_payload_is_refused_with_the_reason(body: bytes, complaint: str) -> None:
    with pytest.raises(ProtocolError, match=complaint):
        parse("push", body, content_type="Application/X-WWW-Form-urlencoded")


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/xml; q=1"])
def test_a_body_of_another_content_type_is_told_which_to_choose(content_type: str) -> None:
    with pytest.raises(ProtocolError, match="expected application/json as Content-Type"):
        parse("push", payload("push-branch-created"), content_type=content_type)
