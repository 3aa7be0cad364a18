"""Credentials in the running service: used, rotated, told of, and never shown.

The service is a process of its own, with workers, so that all it writes and starts can be looked
at: its output, its data, the arguments and environment of every process, and what it answers.
"""

import asyncio
import base64
import contextlib
import json
import os
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import aiohttp
import pytest
from aiohttp import web

from mirror.demo.forge import BasicAuth, HttpBackend
from mirror.doctor.examine import examine
from mirror.doctor.finding import Verdict
from mirror.doctor.service import examine_credentials
from mirror.refresh.refresher import Trigger
from tests.certificates import Authority
from tests.git_client import GitClient, Upstream
from tests.github_server import APP_ID, KEY, Clock, github_site, pem
from tests.mirror_service import WAIT_SECONDS_MAX, MirrorService, ask, mirroring
from tests.upstream.scripted import scripted
from tests.ways import forward_proxy, tls_front

PASSWORD = "p4ss/wd+of=the~bot"
NEW_PASSWORD = "r0tated/p4ss+of=the~bot"
NETRC_PASSWORD = "n3trc-p4ss of the bot"
WRONG_PASSWORD = "wr0ng-p4ss-that-is-refused"
PROXY_PASSWORD = "pr0xy-p4ss-of-the-mirror"
WEBHOOK_SECRET = "w3bhook-secret-of-acme"


def forms(secret: str) -> set[str]:
    """Return a secret as it might be written: as it is, for a URL, for JSON, and in base64.

    What stands before it in base64 moves its beginning by up to two bytes: each is there.
    """
    raw = secret.encode()
    encoded = {
        base64.b64encode(b"x" * before + raw).decode()[-(-before * 8 // 6) :].rstrip("=")[:-1]
        for before in range(3)
    }
    return {secret, quote(secret, safe=""), json.dumps(secret)[1:-1], *encoded}


@dataclass
class Running:
    """`git-mirror serve` as a process.

    Attributes:
        printed: All that it wrote to stdout and stderr, the lines of the log as they came.
        processes: Arguments and environment of it and of its children, as far as they were seen.
    """

    process: asyncio.subprocess.Process
    printed: list[str] = field(default_factory=list)
    processes: list[str] = field(default_factory=list)
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.printed.append(line.decode())
            async with self._news:
                self._news.notify_all()

    async def until(self, event: str, **fields: str) -> dict[str, object]:
        """Wait for an event in the log."""

        def found() -> dict[str, object] | None:
            for line in self.printed:
                one: dict[str, object] = json.loads(line)
                if {"event": event, **fields}.items() <= one.items():
                    return one
            return None

        async with asyncio.timeout(WAIT_SECONDS_MAX), self._news:
            await self._news.wait_for(lambda: found() is not None)
        event_found = found()
        assert event_found is not None
        return event_found

    def look_at_processes(self) -> None:
        """Keep what anybody on the machine could see of the processes."""
        pids = [self.process.pid]
        for pid in pids:
            with contextlib.suppress(OSError):  # a git that ends while it is looked at
                for children in Path(f"/proc/{pid}/task").glob("*/children"):  # of each thread
                    pids += map(int, children.read_text().split())
                for name in ("cmdline", "environ"):
                    self.processes.append(Path(f"/proc/{pid}/{name}").read_text(errors="replace"))
        assert len(pids) >= 3, "the main process and its workers"


@contextlib.asynccontextmanager
async def served(file: Path, env: dict[str, str]) -> AsyncIterator[Running]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mirror", "serve", "--config", str(file)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=env,
        limit=1 << 20,
    )
    running = Running(process)
    reading = asyncio.create_task(running.read())
    try:
        yield running
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        running.printed.append((await process.stdout.read()).decode())
        await reading
        await process.wait()


async def command(*args: str, env: dict[str, str]) -> tuple[int | None, str]:
    """Run the command line; returns its exit code and all that it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mirror", *args),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=env,
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode()


def swap(place: Path, version: str, content: dict[str, str]) -> None:
    """Mount a secret as Kubernetes does: `..data` leads to the newest version of all files."""
    directory = place / f"..{version}"
    directory.mkdir(parents=True)
    for name, text in content.items():
        (directory / name).write_text(text)
        (directory / name).chmod(0o400)
        if not (place / name).is_symlink():
            (place / name).symlink_to(Path("..data") / name)
    (place / "..new").symlink_to(directory.name)
    (place / "..new").rename(place / "..data")


def a_watched_git(directory: Path, log: Path) -> Path:
    """Put a git into `directory` that writes down its arguments and its environment."""
    directory.mkdir()
    script = directory / "git"
    real = shutil.which("git")
    script.write_text(f'#!/bin/sh\n{{ echo "$0 $*"; env; }} >> {log}\nexec {real} "$@"\n')
    script.chmod(0o755)
    return directory


def leaks(texts: Iterable[str], secrets: Iterable[str]) -> list[str]:
    """Return what of the secrets, in any form, is in the texts."""
    whole = "\n".join(texts)
    return [form for secret in secrets for form in forms(secret) if form in whole]


async def echo(request: web.Request) -> web.Response:
    """Be a broken gateway that shows the request that it did not understand."""
    shown = "\n".join(f"{name}: {value}" for name, value in request.headers.items())
    return web.Response(status=500, text=shown)


async def test_no_secret_is_in_anything_that_the_service_writes_says_or_starts(
    tmp_path: Path, upstream_root: Path, upstream: Upstream
) -> None:
    clock = Clock()
    clock.now = time.time()
    ways = tmp_path / "ways"
    ways.mkdir()
    authority = Authority.make(ways)
    other_root = tmp_path / "other"
    other_root.mkdir()
    for name in ("bot/by-file", "bot/by-netrc", "bot/refused"):
        Upstream(other_root, name).commit()
    home = tmp_path / "home"
    home.mkdir()
    mounted, git_log = tmp_path / "mounted", tmp_path / "git.log"
    swap(mounted, "v1", {"token": PASSWORD})
    secrets = {
        "app.pem": pem().decode(),
        "netrc": f'machine 127.0.0.1 login bot password "{NETRC_PASSWORD}"\n',
        "wrong": WRONG_PASSWORD,
        "proxy": PROXY_PASSWORD,
        "webhook": WEBHOOK_SECRET,
    }
    for name, content in secrets.items():
        (home / name).write_text(content)
        (home / name).chmod(0o600)
    env = {
        "PATH": f"{a_watched_git(tmp_path / 'bin', git_log)}:{os.defpath}",
        "CREDENTIALS_DIRECTORY": str(mounted),
        "COLUMNS": "300",
    }
    async with (
        github_site(upstream_root, clock) as site,
        tls_front(site.forge.port, authority.server_context(ways)) as tls_port,
        forward_proxy() as proxy,
        HttpBackend(other_root, basic_auth=("bot", PASSWORD)) as by_file,
        HttpBackend(other_root, basic_auth=("bot", NETRC_PASSWORD)) as by_netrc,
        scripted(echo) as gateway,
        aiohttp.ClientSession() as session,
    ):
        proxy.account = f"mirror:{PROXY_PASSWORD}"
        file = home / "mirror.yaml"
        file.write_text(
            textwrap.dedent(f"""\
            server: {{listen: "127.0.0.1:0", workers: 2}}
            data_dir: data
            engine: git
            log: {{format: json, level: debug}}
            defaults: {{poll_interval: never, webhook_secret_file: webhook}}
            repositories:
              acme/gitops-repo:
                upstream: https://localhost:{tls_port}/acme/gitops-repo.git
                forge: github
                credentials: {{github_app: {{app_id: {APP_ID}, private_key_file: app.pem}}}}
                ca_file: {authority.file}
                proxy: {proxy.url}
                proxy_credentials: {{username: mirror, password_file: proxy}}
              bot/by-file:
                upstream: {by_file.repository_url("bot/by-file")}
                forge: gitlab
                credentials: {{username: bot, password_file: $CREDENTIALS_DIRECTORY/token}}
              bot/by-netrc:
                upstream: {by_netrc.repository_url("bot/by-netrc")}
                forge: gitea
                credentials: {{netrc_file: netrc}}
              bot/refused:
                upstream: {by_file.repository_url("bot/refused")}
                forge: gitea
                credentials: {{username: bot, password_file: wrong}}
              bot/broken:
                upstream: {gateway.url}/bot/broken
                forge: gitea
                credentials: {{username: bot, password_file: wrong}}
            """)
        )
        said: list[str] = []
        async with served(file, env) as running:
            url = str((await running.until("serving"))["url"])
            for name in ("acme/gitops-repo", "bot/by-file", "bot/by-netrc"):
                await running.until("published", repository=name)
            refused = await running.until("refresh_failed", repository="bot/refused")
            broken = await running.until("refresh_failed", repository="bot/broken")
            running.look_at_processes()

            assert f"the password of bot in {home}/wrong is wrong or expired" in str(refused)
            assert "failing since 20" in str(refused)
            assert "***" in str(broken["error"]), "the gateway showed them, and we do not"
            assert any(one.startswith("CONNECT localhost:") for one in proxy.asked)
            client = GitClient(tmp_path / "client")
            assert await client.ls_remote(f"{url}/acme/gitops-repo", "--refs") == upstream.refs()
            for name, status in (("bot/refused", 503), ("bot/broken", 503), ("bot/by-file", 200)):
                path = f"{url}/{name}/info/refs?service=git-upload-pack"
                answer = await ask(session, "GET", path)
                assert answer.status == status
                said.append(f"{answer.headers} {answer.text}")
            assert "wrong or expired" in said[0]

            # The token is rotated at the forge, then here; nothing is restarted.
            by_file.account = BasicAuth("bot", NEW_PASSWORD)
            code, text = await command("sync", "--config", str(file), "bot/by-file", env=env)
            assert code == 1
            assert f"the password of bot in {mounted}/token is wrong or expired" in text
            said.append(text)
            swap(mounted, "v2", {"token": NEW_PASSWORD})
            code, text = await command("sync", "--config", str(file), "bot/by-file", env=env)
            assert (code, text) == (0, "bot/by-file: up to date, 1 ref\n")

            commands = (
                ["status", "--url", url],
                ["doctor", "--config", str(file), "--url", url, "acme/gitops-repo", "bot/refused"],
                ["check", "--config", str(file), "--online"],
            )
            done = await asyncio.gather(*(command(*args, env=env) for args in commands))
            said += [text for _, text in done]
            pages = ("/metrics", "/status.json", "/readyz")
            said += [(await ask(session, "GET", url + page)).text for page in pages]
            running.look_at_processes()
        state = json.loads(said[-2])["repositories"]
        metrics = said[-3]
        issued = [*site.github.tokens, *site.github.signed]
    assert state["acme/gitops-repo"]["credentials"]["kind"] == "github_app"
    assert state["acme/gitops-repo"]["credentials"]["renewed_at"] is not None
    assert state["bot/by-netrc"]["credentials"]["failing_since"] is None
    assert state["bot/refused"]["credentials"]["failing_since"] is not None
    failing = "git_mirror_repository_credentials_failing"
    assert f'{failing}{{repository="bot/refused"}} 1.0' in metrics
    assert f'{failing}{{repository="bot/by-file"}} 0.0' in metrics

    written = [
        path.read_bytes().decode("latin-1")
        for path in (home / "data").rglob("*")
        if path.is_file() and not path.is_symlink()
    ]
    assert len(written) > 10
    assert "index-pack" in git_log.read_text()
    number = KEY.private_numbers()
    key_lines = pem().decode().split("\n")[1:-2]
    used = [
        *(PASSWORD, NEW_PASSWORD, NETRC_PASSWORD, WRONG_PASSWORD, PROXY_PASSWORD, WEBHOOK_SECRET),
        *(*issued, *key_lines, str(number.d), f"{number.p:x}"),
    ]
    texts = [*running.printed, *running.processes, *said, *written, git_log.read_text()]
    assert len(issued) >= 2
    assert leaks([f"it is {PASSWORD}"], used) == [PASSWORD], "what is looked for is found"
    for user in ("bot", "mirror", "x-access-token"):
        pair = base64.b64encode(f"{user}:{WRONG_PASSWORD}".encode()).decode()
        assert leaks([pair], [WRONG_PASSWORD]), "also as a header has it"
    assert leaks(texts, used) == []


# --- what operators see ------------------------------------------------------------------------


@pytest.fixture
async def mirror(
    upstream_root: Path, upstream: Upstream, tmp_path: Path
) -> AsyncIterator[MirrorService]:
    """A mirror that signs in by a password file."""
    place = tmp_path / "mirror"
    place.mkdir()
    (place / "token").write_text(PASSWORD)
    async with (
        HttpBackend(upstream_root, basic_auth=("bot", PASSWORD)) as forge,
        mirroring(
            forge,
            place,
            names=[upstream.name],
            repository="credentials: {username: bot, password_file: token}",
        ) as running,
    ):
        yield running


async def test_credentials_that_fail_are_told_everywhere_with_since_when(
    mirror: MirrorService, upstream: Upstream
) -> None:
    taken = (await mirror.get("/status.json")).json["repositories"][upstream.name]["credentials"]
    assert (taken["kind"], taken["failing_since"]) == ("password_file", None)
    assert taken["accepted_at"] is not None
    mirror.forge.account = BasicAuth("bot", NEW_PASSWORD)
    for _ in range(2):
        refresh = mirror.hosted(upstream.name).refresher.request(Trigger.MANUAL)
        await asyncio.wait((refresh,))
    state = (await mirror.get("/status.json")).json["repositories"][upstream.name]
    since = state["credentials"]["failing_since"]
    assert since is not None
    assert "is wrong or expired; put a new one into the file (failing since" in state["last_error"]
    assert since[:19].replace("T", " ") in state["last_error"]
    labels = {"repository": upstream.name}
    assert await mirror.metric("git_mirror_repository_credentials_failing", **labels) == 1
    found = {
        one.check: one for one in await examine(mirror.service.settings, [], url=mirror.service.url)
    }
    assert found["credentials"].verdict is Verdict.PROBLEM
    assert "put a new one into the file" in found["credentials"].advice


async def test_the_days_that_credentials_have_left_are_told_in_time(
    mirror: MirrorService, upstream: Upstream
) -> None:
    standing = mirror.mirror(upstream.name).credentials
    assert standing is not None
    for days, verdict in (
        (200, Verdict.OK),
        (-1, Verdict.PROBLEM),
        (1, Verdict.PROBLEM),
        (10, Verdict.WARNING),
    ):
        standing.expires_at = time.time() + days * 86_400 + 60
        described = (await mirror.get("/status.json")).json["repositories"][upstream.name]
        assert described["credentials"]["days_left"] == days
        [finding] = examine_credentials(upstream.name, described)
        assert finding.verdict is verdict
    name = "git_mirror_repository_credentials_expiry_timestamp_seconds"
    assert await mirror.metric(name, repository=upstream.name) == standing.expires_at
    code, text = await command("status", "--url", mirror.service.url, env={"COLUMNS": "300"})
    assert code == 0
    assert "the credentials end in 10 days: the password of bot in" in text
