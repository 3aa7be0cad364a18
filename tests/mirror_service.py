"""A running service in front of a forge, for the tests that look at it from outside.

Nothing here sleeps: a test waits for what a mirror itself signals (`Mirror.changed`).
"""

import asyncio
import hashlib
import hmac
import io
import itertools
import json
import ssl
import textwrap
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from mirror.config import load
from mirror.demo.forge import HttpBackend
from mirror.refresh.mirror import Mirror
from mirror.refresh.registry import Hosted
from mirror.service import Service
from tests.git_client import Upstream

NAME: Final = "acme/gitops-repo"
OTHER: Final = "acme/other"
SECRET: Final = "the secret of the webhooks"
ZERO_ID: Final = "0" * 40
WAIT_SECONDS_MAX: Final = 60.0
"""A test fails after that instead of hanging; nothing is to take so long."""

HOLD_SECONDS: Final = 20
"""Readers are held for so long unless a test says otherwise. A refresh takes a tenth of a second,
but where many tests share a core the usual hold of 5 seconds may end before it does."""

_DELIVERIES: Final = itertools.count(1)


with_fast_lane = True
"""Whether services have a fast lane unless a test turns it off: `--no-fast-lane` in conftest.py."""


class Answered(NamedTuple):
    """An HTTP answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def hosted_by(service: Service, name: str = NAME) -> Hosted:
    """Return a repository that a service has."""
    hosted = service.registry.get(name)
    assert hosted is not None, name
    return hosted


def configuration(
    forge: HttpBackend,
    directory: Path,
    *,
    names: Iterable[str] = (NAME,),
    engine: str = "git",
    workers: int | str = 1,
    server: str = "",
    listen: str = "127.0.0.1:0",
    sections: str = "",
    defaults: str = "",
    repository: str = "",
    fast_lane: bool = True,
) -> Path:
    """Write a configuration file into `directory` and return it.

    Nothing is polled, so that a test alone decides when the upstream is asked; and readers are
    held for longer than is usual (`HOLD_SECONDS`).

    Args:
        forge: Where the repositories are.
        directory: Takes the file, the secret and the data.
        names: The repositories, each named as its upstream is.
        engine: The pack engine.
        workers: How many processes serve, or `auto`.
        server: More keys of `server:`, between braces as they stand.
        listen: The address to listen on.
        sections: More sections, as they would stand in the file.
        defaults: More keys of `defaults:`.
        repository: More keys of every repository.
        fast_lane: Whether there is one; never in a run with `--no-fast-lane`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    secret = directory / "webhook-secret"
    secret.write_text(SECRET + "\n")
    secret.chmod(0o600)
    lane = "true" if fast_lane and with_fast_lane else "false"
    more = f", {server}" if server else ""
    hold = "" if "hold:" in defaults else f"  hold: {HOLD_SECONDS}s"
    lines = [
        f'server: {{listen: "{listen}", fast_lane: {lane}, workers: {workers}{more}}}',
        "data_dir: data",
        f"engine: {engine}",
        textwrap.dedent(sections).strip(),
        "defaults:",
        "  poll_interval: never",
        "  webhook_secret_file: webhook-secret",
        hold,
        textwrap.indent(textwrap.dedent(defaults).strip(), "  "),
    ]
    names = list(names)
    lines += ["repositories:"] if names else []
    for name in names:
        lines += [
            f"  {name}:",
            f"    upstream: {forge.repository_url(name)}",
            "    forge: github",
            textwrap.indent(textwrap.dedent(repository).strip(), "    "),
        ]
    file = directory / "mirror.yaml"
    file.write_text("\n".join(line for line in lines if line.strip()) + "\n")
    return file


class MirrorService:
    """The service that a test talks to, and the forge behind it."""

    def __init__(
        self, service: Service, forge: HttpBackend, session: aiohttp.ClientSession
    ) -> None:
        self.service = service
        self.forge = forge
        self.session = session

    def url(self, name: str = NAME) -> str:
        """Return the URL that a reader configures."""
        return f"{self.service.url}/{name}"

    def hosted(self, name: str = NAME) -> Hosted:
        return hosted_by(self.service, name)

    def mirror(self, name: str = NAME) -> Mirror:
        return self.hosted(name).mirror

    # --- waiting -------------------------------------------------------------------------------

    async def until(self, met: Callable[[Mirror], bool], name: str = NAME) -> None:
        """Wait until the mirror is as `met` wants it, in every process."""
        mirror = self.mirror(name)
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            while not met(mirror):
                await mirror.changed.wait(WAIT_SECONDS_MAX)
            if mirror.replicas is not None:
                await mirror.replicas.refreshed(mirror)

    async def mirrored(self, name: str = NAME) -> None:
        """Wait for the first clone."""
        await self.until(lambda mirror: mirror.snapshot is not None, name)

    async def settled(self) -> None:
        """Wait until no announced refresh is under way or to come, unless refreshes fail."""
        for hosted in self.service.registry:
            await self.until(
                lambda mirror: not mirror.freshness.is_pending or mirror.freshness.failures > 0,
                hosted.mirror.name,
            )

    async def caught_up(self, upstream: Upstream) -> None:
        """Wait until the mirror shows the refs that the upstream has now."""
        wanted = upstream.refs()
        await self.until(lambda mirror: refs_of(mirror) == wanted, upstream.name)

    # --- HTTP ----------------------------------------------------------------------------------

    async def ask(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answered:
        """Send a request as it stands, and read the whole answer; nothing is decoded."""
        return await ask(self.session, method, self.service.url + path, body=body, headers=headers)

    async def get(self, path: str, *, headers: Mapping[str, str] | None = None) -> Answered:
        return await self.ask("GET", path, headers=headers)

    async def info_refs(
        self, name: str = NAME, *, version: int = 0, headers: Mapping[str, str] | None = None
    ) -> Answered:
        """Ask for the advertisement."""
        return await self.get(
            f"/{name}/info/refs?service=git-upload-pack",
            headers={**git_protocol(version), **(headers or {})},
        )

    async def upload_pack(
        self,
        body: bytes,
        name: str = NAME,
        *,
        version: int = 0,
        headers: Mapping[str, str] | None = None,
    ) -> Answered:
        """Send a command or a fetch."""
        return await self.ask(
            "POST",
            f"/{name}/git-upload-pack",
            body=body,
            headers={**UPLOAD_PACK_HEADERS, **git_protocol(version), **(headers or {})},
        )

    async def metric(self, name: str, **labels: str) -> float | None:
        """Return one sample of /metrics; `None` where there is no such series."""
        text = (await self.get("/metrics")).text
        # Of hundreds of series the parser is to read those that may be it.
        lines = [line + "\n" for line in text.split("\n") if line.startswith(name)]
        for family in text_string_to_metric_families("".join(lines)):
            for sample in family.samples:
                if sample.name == name and sample.labels == labels:
                    return float(sample.value)
        return None

    # --- webhooks ------------------------------------------------------------------------------

    async def deliver(
        self, body: bytes, headers: Mapping[str, str], *, forge: str = "github"
    ) -> Answered:
        """Deliver a webhook as it stands."""
        return await self.ask("POST", f"/webhooks/{forge}", body=body, headers=headers)

    async def announce(
        self, upstream: Upstream, ref: str = "refs/heads/main", *, before: str = ZERO_ID
    ) -> Answered:
        """Deliver what GitHub sends for a push that left `ref` as the upstream has it now."""
        after = upstream.refs().get(ref, ZERO_ID)
        body = github_push(self.forge.repository_url(upstream.name), ref, before, after)
        answer = await self.deliver(body, github_headers(body))
        assert answer.status == 202, answer
        return answer


UPLOAD_PACK_HEADERS: Final = {
    "Content-Type": "application/x-git-upload-pack-request",
    "Accept": "application/x-git-upload-pack-result",
}


def git_protocol(version: int) -> dict[str, str]:
    """Return what git sends to ask for a protocol version."""
    return {"Git-Protocol": f"version={version}"} if version else {}


async def ask(
    session: aiohttp.ClientSession,
    method: str,
    url: str,
    *,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answered:
    """Send a request as it stands, and read the whole answer."""
    data = None if body is None else io.BytesIO(body)  # as bytes, a long one is warned of
    async with session.request(
        method, url, data=data, headers=headers, allow_redirects=False
    ) as response:
        return Answered(response.status, response.headers, await response.read())


def refs_of(mirror: Mirror) -> dict[str, str]:
    """Return the refs that a mirror shows, as `Upstream.refs` does."""
    refs = mirror.snapshot.refs if mirror.snapshot is not None else ()
    return {ref.name.decode(): ref.oid.decode() for ref in refs}


def github_push(url: str, ref: str, before: str, after: str) -> bytes:
    """Return the body of GitHub's `push` event, as far as anybody reads it."""
    repository = {"clone_url": url, "html_url": url.removesuffix(".git")}
    push = {"ref": ref, "before": before, "after": after, "repository": repository}
    return json.dumps(push).encode()


def github_headers(
    body: bytes, *, event: str = "push", secret: str = SECRET, delivery: str = ""
) -> dict[str, str]:
    """Return the headers that GitHub sends with `body`."""
    return {
        "Content-Type": "application/json",
        "X-GitHub-Event": event,
        "X-GitHub-Delivery": delivery or f"delivery-{next(_DELIVERIES)}",
        "X-Hub-Signature-256": "sha256="
        + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest(),
    }


def gitlab_push(url: str, ref: str, before: str, after: str) -> bytes:
    """Return the body of GitLab's push event, as far as anybody reads it."""
    kind = "tag_push" if ref.startswith("refs/tags/") else "push"
    push = {"object_kind": kind, "event_name": kind, "ref": ref, "before": before, "after": after}
    return json.dumps({**push, "project": {"git_http_url": url}}).encode()


def gitlab_headers(*, event: str = "Push Hook", secret: str = SECRET) -> dict[str, str]:
    """Return the headers that GitLab sends with an event."""
    return {
        "Content-Type": "application/json",
        "X-Gitlab-Event": event,
        "X-Gitlab-Token": secret,
        "Idempotency-Key": f"delivery-{next(_DELIVERIES)}",
    }


def gitea_push(url: str, branch: str, before: str, after: str) -> tuple[bytes, dict[str, str]]:
    """Return the body of Gitea's push event, as far as anybody reads it, and its headers."""
    push = {"ref": f"refs/heads/{branch}", "before": before, "after": after}
    body = json.dumps({**push, "repository": {"clone_url": url}}).encode()
    return body, {
        "Content-Type": "application/json",
        "X-Gitea-Event": "push",
        "X-Gitea-Delivery": f"delivery-{next(_DELIVERIES)}",
        "X-Gitea-Signature": hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest(),
    }


def bitbucket_push(url: str, branch: str, before: str, after: str) -> tuple[bytes, dict[str, str]]:
    """Return the body of Bitbucket Cloud's push event, as far as anybody reads it, and headers."""
    old, new = (
        {"type": "branch", "name": branch, "target": {"hash": tip}} for tip in (before, after)
    )
    repository = {"links": {"html": {"href": url}}}
    push = {"changes": [{"old": old, "new": new}]}
    body = json.dumps({"repository": repository, "push": push}).encode()
    return body, bitbucket_headers(body)


def bitbucket_headers(body: bytes) -> dict[str, str]:
    """Return the headers that Bitbucket Cloud sends with a push."""
    digest = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    return {
        "Content-Type": "application/json",
        "X-Event-Key": "repo:push",
        "X-Request-UUID": f"delivery-{next(_DELIVERIES)}",
        "X-Hub-Signature": f"sha256={digest}",
    }


@asynccontextmanager
async def serving(
    file: Path, forge: HttpBackend, *, tls: Path | None = None
) -> AsyncIterator[MirrorService]:
    """Run the service with the configuration `file`; nothing has to be mirrored yet.

    `tls` holds the authority of its certificate, where it speaks TLS.
    """
    context = ssl.create_default_context(cafile=str(tls)) if tls is not None else True
    async with (
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context),
            auto_decompress=False,
            skip_auto_headers=["Accept-Encoding", "Content-Type", "User-Agent"],
            timeout=aiohttp.ClientTimeout(total=WAIT_SECONDS_MAX),
        ) as session,
        Service(load(file)) as service,
    ):
        running = MirrorService(service, forge, session)
        yield running
        await running.settled()


@asynccontextmanager
async def mirroring(
    forge: HttpBackend,
    directory: Path,
    *,
    names: Iterable[str] = (NAME,),
    fast_lane: bool = True,
    tls: Path | None = None,
    **more: Any,
) -> AsyncIterator[MirrorService]:
    """Run the service over repositories of `forge` and wait until each is mirrored."""
    names = list(names)
    file = configuration(forge, directory, names=names, fast_lane=fast_lane, **more)
    async with serving(file, forge, tls=tls) as running:
        for name in names:
            await running.mirrored(name)
        yield running
