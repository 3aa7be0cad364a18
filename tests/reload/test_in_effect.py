"""What a reload changes shows at once, section by section, while polls go on.

With two workers: what shows there shows in the process that talks to upstreams and receivers, and
in those that serve.
"""

import asyncio
import json
import os
import signal
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from mirror.demo.forge import BasicAuth, HttpBackend
from mirror.refresh.refresher import Trigger
from tests.access.issuer import Issuer, issuing
from tests.certificates import Authority
from tests.e2e.day.process import MirrorProcess
from tests.git_client import GitClient, Upstream
from tests.lfs_server import LFS_TYPE
from tests.mirror_service import (
    NAME,
    OTHER,
    WAIT_SECONDS_MAX,
    MirrorService,
    configuration,
    github_headers,
    github_push,
    mirroring,
)
from tests.ports import free_port
from tests.pull_through import AT
from tests.refresh.relay.receiving import Receiver, relays
from tests.reload.test_reload import polled
from tests.workers.connections import one_to_each
from tests.workers.impatience import impatient_with

INFO_REFS = f"/{NAME}/info/refs?service=git-upload-pack"

Change = Callable[..., None]


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with issuing() as running:
        yield running


async def batch_status(mirror: MirrorService, name: str) -> int:
    headers = {"Accept": LFS_TYPE, "Content-Type": LFS_TYPE}
    body = json.dumps({"operation": "download", "objects": []}).encode()
    path = f"/{name}.git/info/lfs/objects/batch"
    return (await mirror.ask("POST", path, body=body, headers=headers)).status


async def statuses(mirror: MirrorService, path: str, token: str = "") -> set[int]:
    """Ask several times, on whichever connections."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return {(await mirror.get(path, headers=headers)).status for _ in range(4)}


async def test_each_section_counts_from_the_reload_on(
    forge: HttpBackend, other: Upstream, issuer: Issuer, receiver: Receiver, tmp_path: Path
) -> None:
    directory = tmp_path / "m"
    (directory).mkdir()
    (directory / "password").write_text("right")
    (directory / "password").chmod(0o600)
    (directory / "new-secret").write_text("another secret\n")
    (directory / "new-secret").chmod(0o600)
    async with mirroring(forge, directory, names=[NAME, OTHER], workers=2) as mirror:

        async def apply(edit: Callable[[str], str] = str, **more: Any) -> None:
            file = configuration(forge, directory, names=[NAME, OTHER], workers=2, **more)
            file.write_text(edit(file.read_text()))
            answer = await mirror.service.reload()
            assert answer["outcome"] == "applied", answer
            assert answer["restart"] == []

        async with polled(mirror) as seen:
            # relays: one comes, changes, and goes.
            await apply(sections=relays(directory, one=f"argocd {receiver.url}/one"))
            other.commit()
            await mirror.announce(other)
            (first,) = await receiver.came(1)
            await apply(sections=relays(directory, one=f"argocd {receiver.url}/two"))
            other.commit()
            await mirror.announce(other)
            second = (await receiver.came(2))[1]
            assert (first.path, second.path) == ("/one", "/two")
            assert second.step[1] == first.step[2]
            await apply()
            assert "one" not in (await mirror.get("/status.json")).json["relays"]
            # upstreams: a place comes, and goes with what came by it.
            place = (
                f"upstreams: [{{at: /{AT}, from: '{forge.url}', repositories: ['**'],"
                " forge: github}]"
            )
            await apply(sections=place)
            pulled = f"/{AT}/{OTHER}/info/refs?service=git-upload-pack"
            # In v2, which waits for a first clone for as long as it takes.
            first_read = await mirror.info_refs(f"{AT}/{OTHER}", version=2)
            assert (first_read.status, b"ERR" in first_read.body) == (200, False)
            assert await statuses(mirror, pulled) == {200}
            await apply()
            assert await statuses(mirror, pulled) == {404}
            # readers: an issuer is believed, and not any more.
            reads = f"/{OTHER}/info/refs?service=git-upload-pack"
            believed = (
                f"readers: {{oidc: {{flux: {{issuer: '{issuer.url}', audience: git-mirror,"
                " claims: {sub: 'system:*'}, repositories: ['*']}}}"
            )

            def closed(text: str) -> str:
                before, name, after = text.rpartition(f"  {OTHER}:\n")
                return f"{before}{name}    access: [readers]\n{after}"

            await apply(closed, sections=believed)
            token = issuer.token()
            assert await statuses(mirror, reads, token) == {200}
            await apply(closed)
            assert await statuses(mirror, reads, token) == {401}
            # defaults: LFS, bundles, the secret of webhooks, credentials.
            assert await batch_status(mirror, NAME) == 200
            await apply(defaults="lfs: false\nbundle_interval: 1h\nbundle_bytes_min: 0")
            assert await batch_status(mirror, NAME) != 200
            bundler = mirror.service.bundler
            assert bundler is not None
            await mirror.until(lambda one: one.bundles is not None)

            def resecret(text: str) -> str:
                return text.replace(
                    "webhook_secret_file: webhook-secret", "webhook_secret_file: new-secret"
                )

            await apply(resecret)
            body = github_push(forge.repository_url(NAME), "refs/heads/x", "0" * 40, "1" * 40)
            old = await mirror.deliver(body, github_headers(body))
            new = await mirror.deliver(body, github_headers(body, secret="another secret"))
            assert (old.status, new.status) == (401, 202)
            await mirror.settled()
            forge.account = BasicAuth("us", "right")
            refresher = mirror.hosted(OTHER).refresher
            with pytest.raises(Exception, match="401"):
                await asyncio.shield(refresher.request(Trigger.MANUAL))
            await apply(defaults="credentials: {username: us, password_file: password}")
            await asyncio.shield(refresher.request(Trigger.MANUAL))
            forge.account = None
            # limits, server, log.
            await apply(sections="limits: {request_bytes_max: 1KiB}")
            large = await mirror.upload_pack(b"0" * 2000)
            assert large.status == 413
            await apply(server="public_url: 'https://git.example'", sections="log: {level: error}")
            assert mirror.service.settings.server.public_url == "https://git.example"
            assert mirror.service.settings.log.level == "error"
        assert len(seen) > 30
        assert set(seen) == {200}


async def test_other_certificates_are_shown_from_the_next_connection_on(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    del upstream
    authority = Authority.make(tmp_path)
    first, second = authority.issue(tmp_path), authority.issue(tmp_path)
    keys = f"tls: {{certificate_file: {first}, key_file: {first}}}"
    async with mirroring(forge, tmp_path / "m", server=keys, tls=authority.file) as mirror:

        async def serial() -> str:
            context = ssl.create_default_context(cafile=str(authority.file))
            port = int(mirror.service.url.rpartition(":")[2])
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            shown = writer.get_extra_info("ssl_object").getpeercert()["serialNumber"]
            writer.transport.abort()
            return str(shown)

        before = await serial()
        configuration(forge, tmp_path / "m", server=keys.replace(str(first), str(second)))
        async with polled(mirror) as seen:
            assert (await mirror.service.reload())["outcome"] == "applied"
            assert await serial() != before
        configuration(forge, tmp_path / "m", server=keys.replace(str(first), "nowhere.pem"))
        assert (await mirror.service.reload())["outcome"] in {"failed", "refused"}
        assert await serial() != before
        assert set(seen) == {200}


@pytest.mark.usefixtures("only_in_full")
async def test_a_worker_that_hangs_is_replaced_and_the_others_go_on(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del upstream
    async with mirroring(forge, tmp_path / "m", workers=2) as mirror:
        supervisor = mirror.service.supervisor
        assert supervisor is not None
        async with one_to_each(mirror.service.url, supervisor.pids) as workers:
            (hung, _), (_, going_on) = workers.items()
            impatient_with(hung, monkeypatch)
            assert (await going_on.get(INFO_REFS)).status == 200
            os.kill(hung, signal.SIGSTOP)
            configuration(forge, tmp_path / "m", workers=2, defaults="access: [readers]")
            reloading = asyncio.create_task(mirror.service.reload())
            while not reloading.done():
                assert (await going_on.get(INFO_REFS)).status in {200, 401}
            assert (await reloading)["outcome"] == "applied"
            assert (await going_on.get(INFO_REFS)).status == 401
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            while hung in supervisor.pids or len(supervisor.pids) < 2:
                await supervisor.exposition()  # asks those that are there
        async with one_to_each(mirror.service.url, supervisor.pids) as workers:
            for one in workers.values():
                assert (await one.get(INFO_REFS)).status == 401


@pytest.mark.usefixtures("only_in_full")
@pytest.mark.parametrize("moment", ["repository_added", "configuration_reloaded"])
async def test_killed_in_a_reload_it_is_whole_after_the_next_start(
    moment: str,
    forge: HttpBackend,
    other: Upstream,
    upstream: Upstream,
    tmp_path: Path,
    git_client: GitClient,
) -> None:
    directory = tmp_path / "m"
    listen = f"127.0.0.1:{free_port()}"
    server = "reload_on_change: false"
    file = configuration(forge, directory, names=[NAME], listen=listen, server=server)
    process = MirrorProcess(file, f"http://{listen}")
    try:
        await process.start()
        await process.logged(0, lambda event: event["event"] == "published")
        configuration(forge, directory, names=[NAME, OTHER], listen=listen, server=server)
        since = len(process.log)
        process.send(signal.SIGHUP)
        await process.logged(since, lambda event: event["event"] == moment)
        await process.kill()
        await process.start()
        there = lambda event: event["event"] == "published" and event["repository"] == OTHER  # noqa: E731
        if not any(map(there, process.events)):
            await process.logged(since, there)
        for one in (upstream, other):
            assert await git_client.ls_remote(f"{process.url}/{one.name}", "--refs") == one.refs()
            await git_client.fsck(directory / "data" / "repositories" / f"{one.name}.git")
        assert not list((directory / "data" / "staging").iterdir())
        assert await process.stop() == 0
    finally:
        await process.close()
