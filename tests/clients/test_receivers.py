"""What we tell, as the libraries of real receivers check, read and match it."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import pytest

from mirror.demo.forge import HttpBackend
from mirror.refresh.relay import outbox
from tests.clients.receiver_program import RealReceivers, real_receivers
from tests.git_client import Upstream
from tests.mirror_service import NAME, ZERO_ID, MirrorService, mirroring
from tests.refresh.relay.receiving import relays

KEY: Final = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
RECEIVER: Final = ("the-receiver", "flux-system")
MIRROR: Final = "https://mirror.example.com:8470/git"
HOOK: Final = f"/hook/{hashlib.sha256((KEY + ''.join(RECEIVER)).encode()).hexdigest()}"

APPLICATIONS: Final = [
    {"name": "head", "repo_url": f"{MIRROR}/{NAME}.git", "revision": "HEAD"},
    {"name": "plain", "repo_url": f"https://mirror.example.com/git/{NAME}", "revision": "main"},
    {"name": "upper", "repo_url": f"HTTPS://Mirror.Example.com/git/{NAME}", "revision": ""},
    {
        "name": "base",
        "repo_url": f"{MIRROR}/{NAME}",
        "revision": "main",
        "paths": ["apps/web", "base"],
    },
    {"name": "db", "repo_url": f"{MIRROR}/{NAME}", "revision": "main", "paths": ["apps/db"]},
    {"name": "develop", "repo_url": f"{MIRROR}/{NAME}", "revision": "develop"},
    {"name": "tagged", "repo_url": f"{MIRROR}/{NAME}", "revision": "v1"},
    {"name": "forge", "repo_url": f"https://github.com/{NAME}.git", "revision": "main"},
    {"name": "other", "repo_url": f"{MIRROR}/acme/other.git", "revision": "main"},
]


@pytest.fixture
async def receivers() -> AsyncIterator[RealReceivers]:
    setup = {"secret": KEY, "receiver": RECEIVER, "applications": APPLICATIONS}
    async with real_receivers(setup) as running:
        yield running


@pytest.fixture
async def mirror(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, receivers: RealReceivers
) -> AsyncIterator[MirrorService]:
    """The service, which tells each kind of receiver."""
    directory = tmp_path / "mirror"
    more = f'public_urls: ["{MIRROR}"]'
    sections = relays(
        directory,
        argo=f"argocd {receivers.url}/api/webhook {more}",
        sets=f"argocd {receivers.url}/appset/api/webhook {more}",
        fleet=f"fleet {receivers.url}/fleet {more}",
        flux=f"flux {receivers.url}{HOOK} {more}",
        structured=f"webhook {receivers.url}/events/structured {more}",
        binary=f"webhook {receivers.url}/events/binary {more}, mode: binary",
    )
    (directory / "relay-secret").write_text(KEY)
    async with mirroring(forge, directory, sections=sections) as running:
        yield running


async def test_argo_cd_refreshes_what_the_push_touches_and_keeps_the_manifests_of_the_rest(
    mirror: MirrorService, upstream: Upstream, receivers: RealReceivers
) -> None:
    before = upstream.oid()
    after = upstream.commit(files={"base/app.yaml": "image: web:2.0.0\n", "ä b.txt": "1"})
    await mirror.announce(upstream)
    (found,) = await receivers.next("/api/webhook")
    assert found == {
        "path": "/api/webhook",
        "status": 200,
        "ref": "refs/heads/main",
        "before": before,
        "after": after,
        "files": ["ä b.txt", "base/app.yaml"],
        "refreshed": ["head", "plain", "upper", "base"],
        "moved": ["db"],
    }
    (of_sets,) = await receivers.next("/appset/")
    assert of_sets["refreshed"] == ["head", "plain", "upper", "base", "db"]


async def test_argo_cd_refreshes_all_when_the_range_can_not_be_told(
    mirror: MirrorService, upstream: Upstream, receivers: RealReceivers
) -> None:
    upstream.commit(files={"elsewhere": "1"}, parents=[])
    await mirror.announce(upstream)
    (found,) = await receivers.next("/api/webhook")
    assert "files" not in found
    assert found["refreshed"] == ["head", "plain", "upper", "base", "db"]


async def test_argo_cd_is_told_of_other_branches_tags_and_deletions(
    mirror: MirrorService, upstream: Upstream, receivers: RealReceivers
) -> None:
    upstream.commit("develop")
    await mirror.announce(upstream, "refs/heads/develop")
    (created,) = await receivers.next("/api/webhook")
    assert (created["before"], created["refreshed"]) == (ZERO_ID, ["develop"])
    upstream.delete_ref("develop")
    await mirror.announce(upstream, "refs/heads/develop")
    deleted = (await receivers.next("/api/webhook", 2))[-1]
    assert (deleted["after"], deleted["refreshed"]) == (ZERO_ID, ["develop"])
    upstream.tag("v1")
    await mirror.announce(upstream, "refs/tags/v1")
    assert (await receivers.next("/api/webhook", 3))[-1]["refreshed"] == ["tagged"]
    first = (await receivers.next("/fleet"))[0]
    assert (first["ref"], first["refreshed"]) == ("refs/heads/develop", ["develop"])


async def test_flux_takes_the_signature(
    mirror: MirrorService, upstream: Upstream, receivers: RealReceivers
) -> None:
    before, after = upstream.oid(), upstream.commit()
    await mirror.announce(upstream)
    (found,) = await receivers.next("/hook/")
    assert found == {
        "path": HOOK,
        "status": 200,
        "event": {
            "repository": NAME,
            "urls": [f"{MIRROR}/{NAME}"],
            "refs": [{"ref": "refs/heads/main", "before": before, "after": after}],
        },
    }


@pytest.mark.parametrize("mode", ["structured", "binary"])
async def test_the_libraries_of_cloudevents_and_standard_webhooks_take_the_event(
    mirror: MirrorService, upstream: Upstream, receivers: RealReceivers, mode: str
) -> None:
    before = upstream.oid()
    ref = "refs/heads/ä"
    after = upstream.commit("ä", parents=[before])
    await mirror.announce(upstream, ref)
    (found,) = await receivers.next(f"/events/{mode}")
    assert found["status"] == 200, found
    event: dict[str, Any] = found["event"]
    assert event["source"] == f"{MIRROR}/{NAME}"
    assert event["type"] == "git-mirror.ref.changed.v1"
    # The binding says that headers are percent-encoded; the library leaves them so.
    assert unquote(event["subject"]) == ref
    assert event["data"] == {
        "repository": NAME,
        "url": f"{MIRROR}/{NAME}",
        "ref": ref,
        "before": None,
        "after": after,
        "forced": False,
        "default_branch": "main",
        "files": None,
    }


async def test_none_of_them_takes_an_event_signed_with_another_secret(
    mirror: MirrorService,
    upstream: Upstream,
    receivers: RealReceivers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outbox, "LASTING_SECONDS", (600.0, 600.0))
    (tmp_path / "mirror" / "relay-secret").write_text("another secret")
    upstream.commit()
    await mirror.announce(upstream)
    for path, status in (
        ("/api/webhook", 400),
        ("/appset/", 400),
        ("/fleet", 401),
        ("/hook/", 400),
        ("/events/structured", 401),
        ("/events/binary", 401),
    ):
        (found,) = await receivers.next(path)
        assert found["status"] == status
