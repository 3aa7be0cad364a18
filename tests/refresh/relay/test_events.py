"""What the requests hold; the libraries of real receivers look at them in tests/clients."""

import base64
import hashlib
import hmac
import json
from pathlib import Path

import pytest

from mirror.config import EventMode, RelayKind, RelaySettings
from mirror.refresh.relay.backlog import Change
from mirror.refresh.relay.events import (
    Files,
    News,
    Request,
    Told,
    batch_max,
    is_told,
    requests,
    signing_key,
    wants_files,
)
from mirror.wire.names import RefName
from tests.refresh.relay.tables import MAIN, name, oid


def relay(kind: RelayKind, mode: EventMode = EventMode.STRUCTURED) -> RelaySettings:
    return RelaySettings(
        name="one",
        kind=kind,
        url="https://x/y",
        secret_file=Path("/s"),
        public_urls=("https://a.example",),
        mode=mode,
    )


def told(ref: RefName = MAIN, before: int | None = 1, after: int | None = 2) -> Told:
    return Told(Change(ref, oid(before), oid(after), 0.0), files=Files(modified=("f",)))


def prepared(
    settings: RelaySettings,
    *changes: Told,
    number: int = 0,
    default_branch: RefName | None = MAIN,
) -> list[Request]:
    news = News("acme/app", changes or (told(),), default_branch, number, 1_700_000_000.25)
    return list(requests(settings, news, b"key"))


def ids(settings: RelaySettings, *changes: Told, number: int = 0) -> list[str]:
    header = {RelayKind.WEBHOOK: "webhook-id"}.get(settings.kind, "X-GitHub-Delivery")
    return [one.headers[header] for one in prepared(settings, *changes, number=number)]


@pytest.mark.parametrize("kind", [RelayKind.ARGOCD, RelayKind.WEBHOOK])
def test_the_same_change_has_the_same_id_until_it_was_acknowledged(kind: RelayKind) -> None:
    one = relay(kind)
    assert ids(one) == ids(one)
    others = [
        ids(one, number=1),
        ids(one, told(after=3)),
        ids(one, told(before=3)),
        ids(one, told(ref=name("other"))),
    ]
    assert len({ids(one)[0], *(other[0] for other in others)}) == 5


def test_a_push_event_is_signed_in_both_ways() -> None:
    (request,) = prepared(relay(RelayKind.FLEET))
    for header, algorithm in (("X-Hub-Signature-256", "sha256"), ("X-Hub-Signature", "sha1")):
        digest = hmac.new(b"key", request.body, algorithm).hexdigest()
        assert request.headers[header] == f"{algorithm}={digest}"


def test_one_body_for_flux_tells_of_all_refs() -> None:
    changes = [told(), told(name("gone"), 3, None)]
    (request,) = prepared(relay(RelayKind.FLUX), *changes)
    assert [one["ref"] for one in json.loads(request.body)["refs"]] == [
        "refs/heads/main",
        "refs/heads/gone",
    ]
    assert (batch_max(RelayKind.FLUX), batch_max(RelayKind.ARGOCD)) == (100, 1)
    digest = hmac.new(b"key", request.body, hashlib.sha256).hexdigest()
    assert request.headers["X-Signature"] == f"sha256={digest}"


def test_the_signature_of_a_cloud_event_covers_its_id_and_the_time() -> None:
    (request,) = prepared(relay(RelayKind.WEBHOOK))
    event = json.loads(request.body)
    assert event["id"] == request.headers["webhook-id"]
    assert event["time"] == "2023-11-14T22:13:20.250+00:00"
    assert request.headers["webhook-timestamp"] == "1700000000"
    signed = f"{event['id']}.1700000000.".encode() + request.body
    signature = base64.b64encode(hmac.digest(b"key", signed, "sha256")).decode()
    assert request.headers["webhook-signature"] == f"v1,{signature}"


def test_headers_of_a_binary_event_hold_plain_characters_only() -> None:
    ref = RefName('refs/heads/ä"%'.encode())
    (request,) = prepared(relay(RelayKind.WEBHOOK, EventMode.BINARY), told(ref))
    assert request.headers["ce-subject"] == "refs/heads/%C3%A4%22%25"
    assert json.loads(request.body)["ref"] == 'refs/heads/ä"%'


@pytest.mark.parametrize("kind", list(RelayKind))
def test_names_that_are_no_utf8_and_a_detached_head_are_no_trouble(kind: RelayKind) -> None:
    odd = told(RefName(b"refs/heads/\xff"))
    (request,) = prepared(relay(kind), odd, default_branch=None)
    assert "refs/heads/\\ufffd" in request.body.decode()


def test_a_key_of_standard_webhooks_is_decoded() -> None:
    assert signing_key(RelayKind.WEBHOOK, b"whsec_a2V5") == b"key"
    assert signing_key(RelayKind.WEBHOOK, b"key") == b"key"
    assert signing_key(RelayKind.ARGOCD, b"whsec_a2V5") == b"whsec_a2V5"
    with pytest.raises(ValueError, match="not base64"):
        signing_key(RelayKind.WEBHOOK, b"whsec_hunter2!")


def test_who_wants_to_know_what() -> None:
    assert [kind for kind in RelayKind if not wants_files(kind)] == [RelayKind.FLUX]
    tag, branch = name("tags/v1"), name("main")
    fleet, argo = is_told(RelayKind.FLEET), is_told(RelayKind.ARGOCD)
    assert [fleet(tag, oid(1)), fleet(branch, None), fleet(branch, oid(1))] == [False, False, True]
    assert [argo(tag, oid(1)), argo(branch, None), argo(branch, oid(1))] == [True, True, True]


def test_a_request_does_not_show_its_signatures() -> None:
    (request,) = prepared(relay(RelayKind.ARGOCD))
    assert "sha256=" not in repr(request)
