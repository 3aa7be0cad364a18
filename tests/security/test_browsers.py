"""A browser that was led here: it shows nothing as a page, and changes nothing for another site."""

from pathlib import Path

import pytest

from mirror.demo.forge import HttpBackend
from tests.git_client import Upstream
from tests.mirror_service import MirrorService, mirroring
from tests.web.fast_lane.polls import INFO_REFS

SCRIPT = "<script>alert(1)</script>"


@pytest.fixture
async def mirror(forge: HttpBackend, upstream: Upstream, tmp_path: Path):  # type: ignore[no-untyped-def]
    async with mirroring(
        forge, tmp_path / "mirror", names=[upstream.name], repository="push: proxy"
    ) as running:
        yield running


async def test_what_a_browser_may_open_is_never_taken_for_a_page(mirror: MirrorService) -> None:
    for method, path, status in (
        ("GET", "/healthz", 200),
        ("GET", "/status.json", 200),
        ("GET", "/metrics", 200),
        ("GET", f"/{SCRIPT}/info/refs?service=git-upload-pack", 404),
        ("GET", f"/{SCRIPT}", 404),
        ("GET", "/acme/gitops-repo/bundles/list", 404),
        ("POST", f"/webhooks/{SCRIPT}", 404),
        ("POST", "/acme/gitops-repo/info/lfs/objects/batch", 422),
    ):
        answer = await mirror.ask(method, path, body=b"x" if method == "POST" else None)
        assert answer.status == status, path
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert not answer.headers["Content-Type"].startswith("text/html"), path
    polled = await mirror.get(INFO_REFS)
    assert polled.headers["Content-Type"].startswith("application/x-git-")


async def test_another_site_can_neither_send_a_push_nor_read_an_answer(
    mirror: MirrorService,
) -> None:
    site = {"Origin": "https://evil.example", "Authorization": "Basic Ym90OnNlY3JldA=="}
    # What a form or a script may send without asking first (a simple request of CORS).
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        for service in ("git-receive-pack", "git-upload-pack"):
            answer = await mirror.ask(
                "POST",
                f"/acme/gitops-repo/{service}",
                body=b"0000",
                headers={**site, "Content-Type": kind},
            )
            assert answer.status == 415, service
    asked_first = await mirror.ask(
        "OPTIONS",
        "/acme/gitops-repo/git-receive-pack",
        headers={**site, "Access-Control-Request-Method": "POST"},
    )
    read = await mirror.get("/status.json", headers=site)
    polled = await mirror.get(INFO_REFS, headers=site)
    for answer in (asked_first, read, polled):
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]
