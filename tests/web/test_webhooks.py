"""POST /webhooks/{forge}: what is taken, from whom, and how fast it is answered."""

import asyncio
import gzip
import json
from pathlib import Path

import pytest
import structlog

from mirror.demo.forge import Faults, HttpBackend
from mirror.refresh import announcements
from mirror.upstream.forges import Headers, WebhookEvent, github
from mirror.web import webhooks
from tests.git_client import Upstream
from tests.mirror_service import (
    MirrorService,
    bitbucket_headers,
    bitbucket_push,
    configuration,
    gitea_push,
    github_headers,
    github_push,
    gitlab_headers,
    gitlab_push,
    mirroring,
    serving,
)
from tests.upstream.forge_samples import PAYLOADS


async def counted(mirror: MirrorService, outcome: str, forge: str = "github") -> float | None:
    return await mirror.metric("git_mirror_webhooks_total", forge=forge, outcome=outcome)


def push_to_main(mirror: MirrorService, upstream: Upstream, before: str = "0" * 40) -> bytes:
    url = mirror.forge.repository_url(upstream.name)
    return github_push(url, "refs/heads/main", before, upstream.oid())


async def test_a_push_is_accepted_before_the_upstream_is_heard(
    mirror: MirrorService, upstream: Upstream
) -> None:
    asked = len(mirror.forge.requests)
    mirror.forge.faults.stall = asyncio.Event()
    upstream.commit()
    body = push_to_main(mirror, upstream)
    answer = await mirror.deliver(body, github_headers(body))
    assert (answer.status, answer.json) == (
        202,
        {"outcome": "accepted", "repositories": [upstream.name]},
    )
    await mirror.forge.wait_for_requests(asked + 1)
    assert mirror.forge.requests[-1].status == 0
    assert await counted(mirror, "accepted") == 1
    mirror.forge.faults.stall.set()
    await mirror.caught_up(upstream)


async def test_gitlab_is_heard_with_its_token(mirror: MirrorService, upstream: Upstream) -> None:
    upstream.tag("v1")
    url = mirror.forge.repository_url(upstream.name)
    body = gitlab_push(url, "refs/tags/v1", "0" * 40, upstream.oid("refs/tags/v1"))
    headers = gitlab_headers(event="Tag Push Hook")
    answer = await mirror.deliver(body, headers, forge="gitlab")
    assert (answer.status, answer.json["outcome"]) == (202, "accepted")
    assert await counted(mirror, "accepted", "gitlab") == 1
    await mirror.caught_up(upstream)


@pytest.mark.parametrize("name", ["gitea", "bitbucket"])
async def test_a_push_at_another_forge_is_heard(
    mirror: MirrorService, upstream: Upstream, name: str
) -> None:
    upstream.commit()
    url = mirror.forge.repository_url(upstream.name)
    body, headers = (gitea_push if name == "gitea" else bitbucket_push)(
        url, "main", upstream.oid("refs/heads/main~1"), upstream.oid()
    )
    answer = await mirror.deliver(body, headers, forge=name)
    assert (answer.status, answer.json["outcome"]) == (202, "accepted")
    assert await counted(mirror, "accepted", name) == 1
    await mirror.caught_up(upstream)


@pytest.mark.parametrize("name", ["gitlab", "bitbucket"])
async def test_a_forge_that_gives_up_hooks_gets_no_refusal_for_what_makes_no_sense(
    name: str, forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    file = configuration(forge, tmp_path, names=[upstream.name])
    file.write_text(file.read_text().replace("forge: github", f"forge: {name}"))
    headers = gitlab_headers() if name == "gitlab" else bitbucket_headers(b"[]")
    async with serving(file, forge) as mirror:
        await mirror.mirrored(upstream.name)
        answer = await mirror.deliver(b"[]", headers, forge=name)
        assert (answer.status, answer.json["outcome"]) == (202, "malformed")
        assert answer.json["error"]
        assert await counted(mirror, "malformed", name) == 1
        wrong = {**headers, "X-Gitlab-Token": "wrong", "X-Hub-Signature": "sha256=00"}
        assert (await mirror.deliver(b"[]", wrong, forge=name)).status == 401


async def test_a_system_hook_is_answered_2xx_whatever_project_it_is_about(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    file = configuration(forge, tmp_path, names=[upstream.name])
    file.write_text(file.read_text().replace("forge: github", "forge: gitlab"))
    async with serving(file, forge) as mirror:
        await mirror.mirrored(upstream.name)
        for name, outcome, reason in (
            ("system-repository-update", "unknown_repository", ""),
            ("system-push", "unknown_repository", ""),
            ("system-project-destroy", "ignored", "it changes no ref"),
            ("system-project-rename", "ignored", "put the new URL into `upstream`"),
        ):
            body = (PAYLOADS / "gitlab" / f"{name}.json").read_bytes()
            headers = gitlab_headers(event="System Hook")
            with structlog.testing.capture_logs() as logged:
                answer = await mirror.deliver(body, headers, forge="gitlab")
            assert (answer.status, answer.json["outcome"]) == (202, outcome)
            [line] = [one for one in logged if one["event"] == "webhook"]
            assert reason in line.get("reason", "")


async def test_a_ping_is_answered_200(mirror: MirrorService, upstream: Upstream) -> None:
    urls = {"clone_url": mirror.forge.repository_url(upstream.name)}
    for body in (json.dumps({"zen": "Z", "repository": urls}).encode(), b'{"zen": "Z"}'):
        answer = await mirror.deliver(body, github_headers(body, event="ping"))
        assert (answer.status, answer.json["outcome"]) == (200, "ping")
    assert await counted(mirror, "ping") == 2


@pytest.mark.parametrize("event", ["issues", "pull_request", "workflow_run"])
async def test_other_events_are_answered_2xx_and_counted(mirror: MirrorService, event: str) -> None:
    answer = await mirror.deliver(b"{}", github_headers(b"{}", event=event))
    assert (answer.status, answer.json["outcome"]) == (202, "ignored")
    assert await counted(mirror, "ignored") == 1
    headers = gitlab_headers(event="Pipeline Hook")
    answer = await mirror.deliver(b"{}", headers, forge="gitlab")
    assert answer.status == 401  # no repository of GitLab's is configured, so nobody has a secret


async def test_an_unknown_repository_is_answered_2xx_and_counted(
    mirror: MirrorService, upstream: Upstream
) -> None:
    asked = len(mirror.forge.requests)
    url = "https://github.com/somebody/else.git"
    body = github_push(url, "refs/heads/main", "0" * 40, upstream.oid())
    answer = await mirror.deliver(body, github_headers(body))
    assert (answer.status, answer.json) == (
        202,
        {"outcome": "unknown_repository", "repositories": []},
    )
    assert await counted(mirror, "unknown_repository") == 1
    assert len(mirror.forge.requests) == asked


@pytest.mark.parametrize(
    "forgery",
    [
        {"X-Hub-Signature-256": "sha256=" + "0" * 64},
        {"X-Hub-Signature-256": "sha256=nonsense"},
        {"X-Hub-Signature-256": "sha1=" + "0" * 40},
        {"X-Hub-Signature-256": "\xff"},
        {"X-Hub-Signature-256": ""},
    ],
)
async def test_a_wrong_signature_is_401_whatever_else_is_said(
    mirror: MirrorService, upstream: Upstream, forgery: dict[str, str]
) -> None:
    asked = len(mirror.forge.requests)
    known = push_to_main(mirror, upstream)
    unknown = github_push("https://github.com/a/b", "refs/heads/main", "0" * 40, upstream.oid())
    answers = [
        await mirror.deliver(body, {**github_headers(body, event=event), **forgery})
        for body in (known, unknown, b"not JSON")
        for event in ("push", "ping", "issues")
    ]
    assert {answer.status for answer in answers} == {401}
    assert len({answer.body for answer in answers}) == 1  # it does not tell what there is
    assert await counted(mirror, "unauthenticated") == len(answers)
    assert await counted(mirror, "accepted") == 0
    assert len(mirror.forge.requests) == asked


async def test_a_missing_signature_is_401(mirror: MirrorService, upstream: Upstream) -> None:
    body = push_to_main(mirror, upstream)
    headers = github_headers(body)
    del headers["X-Hub-Signature-256"]
    assert (await mirror.deliver(body, headers)).status == 401


async def test_a_signature_of_another_body_is_401(
    mirror: MirrorService, upstream: Upstream
) -> None:
    body = push_to_main(mirror, upstream)
    assert (await mirror.deliver(body + b" ", github_headers(body))).status == 401


@pytest.mark.parametrize(
    ("body", "event", "expected"),
    [
        (b"not JSON", "push", "not JSON"),
        (b"[]", "push", "expected an object"),
        (b"{}", "push", "no ref"),
        (b'{"ref": "refs/heads/main"}', "push", "no before"),
        (b"[" * 100_000, "push", "nested too deeply"),
        (b"{}", "", "X-GitHub-Event"),
    ],
)
async def test_a_genuine_delivery_that_makes_no_sense_is_400_and_counted(
    mirror: MirrorService, body: bytes, event: str, expected: str
) -> None:
    answer = await mirror.deliver(body, github_headers(body, event=event))
    assert answer.status == 400
    assert expected in answer.text
    assert await counted(mirror, "malformed") == 1


async def test_a_delivery_that_comes_again_is_recognised(
    mirror: MirrorService, upstream: Upstream
) -> None:
    upstream.commit()
    body = push_to_main(mirror, upstream)
    headers = github_headers(body, delivery="72d3162e-cc78-11e3-81ab-4c9367dc0958")
    assert (await mirror.deliver(body, headers)).json["outcome"] == "accepted"
    await mirror.caught_up(upstream)
    asked = len(mirror.forge.requests)
    again = await mirror.deliver(body, headers)
    assert (again.status, again.json["outcome"]) == (202, "repeated")
    assert len(mirror.forge.requests) == asked
    assert await counted(mirror, "repeated") == 1


async def test_deliveries_without_an_id_are_never_taken_for_repeated(
    mirror: MirrorService, upstream: Upstream
) -> None:
    body = push_to_main(mirror, upstream)
    headers = github_headers(body)
    del headers["X-GitHub-Delivery"]
    for _ in range(2):
        assert (await mirror.deliver(body, headers)).json["outcome"] == "accepted"


async def test_only_so_many_deliveries_are_remembered(
    mirror: MirrorService, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcements, "DELIVERIES_REMEMBERED_MAX", 2)
    body = push_to_main(mirror, upstream)
    for delivery, outcome in [("1", "accepted"), ("2", "accepted"), ("3", "accepted"),
                              ("3", "repeated"), ("1", "accepted")]:  # fmt: skip
        headers = github_headers(body, delivery=delivery)
        assert (await mirror.deliver(body, headers)).json["outcome"] == outcome


async def test_the_owner_of_one_secret_does_not_speak_for_another(
    forge: HttpBackend, upstream: Upstream, upstream_root: Path, tmp_path: Path
) -> None:
    other = Upstream(upstream_root, "acme/other")
    other.commit()
    file = configuration(forge, tmp_path, names=[upstream.name, other.name])
    (tmp_path / "their-secret").write_text("theirs")
    (tmp_path / "their-secret").chmod(0o600)
    file.write_text(file.read_text() + "    webhook_secret_file: their-secret\n")
    async with serving(file, forge) as mirror:
        for name in (upstream.name, other.name):
            await mirror.mirrored(name)
        asked = len(forge.requests)
        body = push_to_main(mirror, upstream)
        theirs = await mirror.deliver(body, github_headers(body, secret="theirs"))
        assert theirs.status == 401
        pinged = await mirror.deliver(b"{}", github_headers(b"{}", event="ping", secret="theirs"))
        assert pinged.status == 200
        assert len(forge.requests) == asked
        body = push_to_main(mirror, other)
        theirs = await mirror.deliver(body, github_headers(body, secret="theirs"))
        assert theirs.json == {"outcome": "accepted", "repositories": [other.name]}


async def test_a_repository_without_a_secret_takes_no_webhook(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    none = "webhook_secret_file: none"
    async with mirroring(forge, tmp_path, names=[upstream.name], repository=none) as mirror:
        body = push_to_main(mirror, upstream)
        answer = await mirror.deliver(body, github_headers(body))
        assert answer.status == 401
        assert "webhook_secret_file" in answer.text


async def test_a_secret_is_read_anew_when_its_file_changes(
    mirror: MirrorService, upstream: Upstream
) -> None:
    file = mirror.service.settings.source.parent / "webhook-secret"
    file.write_text("a new secret")
    body = push_to_main(mirror, upstream)
    assert (await mirror.deliver(body, github_headers(body))).status == 401
    headers = github_headers(body, secret="a new secret")
    assert (await mirror.deliver(body, headers)).status == 202
    file.unlink()
    assert (await mirror.deliver(body, headers)).status == 401


async def test_while_a_secret_is_rotated_both_are_taken_and_the_log_tells_the_old_one(
    mirror: MirrorService, upstream: Upstream
) -> None:
    file = mirror.service.settings.source.parent / "webhook-secret"
    file.write_text("the new one\nthe old one\n")
    body = push_to_main(mirror, upstream)
    for secret, is_old in (("the new one", False), ("the old one", True)):
        with structlog.testing.capture_logs() as logged:
            answer = await mirror.deliver(body, github_headers(body, secret=secret))
        assert answer.status == 202
        [line] = [one for one in logged if one["event"] == "webhook"]
        assert line.get("old_secret", False) is is_old
    file.write_text("the new one\n")
    assert (await mirror.deliver(body, github_headers(body, secret="the old one"))).status == 401
    assert (await mirror.deliver(body, github_headers(body, secret="the new one"))).status == 202


async def test_a_file_with_too_many_secrets_proves_nothing_and_is_named_in_the_log(
    mirror: MirrorService, upstream: Upstream
) -> None:
    file = mirror.service.settings.source.parent / "webhook-secret"
    file.write_text("".join(f"secret-{number}\n" for number in range(9)))
    body = push_to_main(mirror, upstream)
    with structlog.testing.capture_logs() as logged:
        answer = await mirror.deliver(body, github_headers(body, secret="secret-0"))
    assert answer.status == 401
    errors = {one["error"] for one in logged if one["event"] == "webhook_secret_unusable"}
    assert len(errors) == 1
    assert "at most 8 secrets" in errors.pop()


async def test_an_unknown_forge_is_told_which_ones_there_are(mirror: MirrorService) -> None:
    answer = await mirror.deliver(b"{}", {}, forge="sourceforge")
    assert answer.status == 404
    assert "/webhooks/github" in answer.text


async def test_a_long_delivery_is_read_only_after_it_proved_genuine(
    mirror: MirrorService, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[int] = []
    parse = github.parse

    def watched(headers: Headers, body: bytes) -> WebhookEvent:
        parsed.append(len(body))
        return parse(headers, body)

    monkeypatch.setattr(github, "parse", watched)
    upstream.commit()
    body = push_to_main(mirror, upstream) + b" " * 300_000
    assert (await mirror.deliver(body, github_headers(body, secret="wrong"))).status == 401
    assert parsed == []
    assert (await mirror.deliver(body, github_headers(body))).status == 202
    assert parsed == [len(body)]
    await mirror.caught_up(upstream)


async def test_a_delivery_over_the_limit_is_413(
    mirror: MirrorService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "BODY_BYTES_MAX", 1000)
    bomb = gzip.compress(bytes(64 << 20))
    headers = {**github_headers(bomb), "Content-Encoding": "gzip"}
    for answer in (
        await mirror.deliver(bytes(1001), github_headers(bytes(1001))),
        await mirror.deliver(bomb, headers),
    ):
        assert answer.status == 413
        assert "over 1000 bytes" in answer.text


async def test_announcements_while_the_upstream_is_down_are_met_once_it_is_back(
    mirror: MirrorService, upstream: Upstream
) -> None:
    mirror.forge.faults = Faults(status=503, retry_after="0")
    for _ in range(3):
        upstream.commit()
        await mirror.announce(upstream)
    mirror.forge.faults = Faults()
    await mirror.announce(upstream)
    await mirror.caught_up(upstream)
    await mirror.until(lambda one: not one.freshness.is_pending)
