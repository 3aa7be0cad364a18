"""The units, under a real systemd: installed as docs/operations.md says, in a Debian of its own.

`make test-systemd` boots one, in namespaces of this machine. Everything runs under the units' whole
sandbox; what a test changes of them stands in a drop-in. The units are verified by systemd-analyze
in any case (tests/lifecycle/test_unit.py).
"""

import asyncio
import json
import re
import shlex
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
from aiohttp import web

from mirror.demo.forge import HttpBackend
from tests.certificates import Authority
from tests.git_client import GitClient, Upstream
from tests.lifecycle.load import Seen, SlowClone, by_port, poll, slowly
from tests.mirror_service import NAME, SECRET, github_headers, github_push
from tests.packaging.debian import ROOT, Unbuildable, debian, need, run, wheels
from tests.packaging.guest import PACKAGES, Guest, loopback_of_its_own

pytestmark = [
    pytest.mark.timeout(900),  # the first makes a Debian
    pytest.mark.skipif("not config.getoption('--systemd')", reason="make test-systemd boots one"),
]

PORT: Final = 8470
FORGE_PORT: Final = 9000
RECEIVER_PORT: Final = 9001
URL: Final = f"http://127.0.0.1:{PORT}/{NAME}"
TOKEN: Final = "the token of the forge"
CONFIG: Final = "/etc/git-mirror/mirror.yaml"
MIRROR: Final = "/opt/git-mirror/bin/git-mirror"
SECRETS: Final = {"github-token": TOKEN, "github-webhook": SECRET}
READERS: Final = 4
CHANGES: Final = (
    "/etc/systemd/system/git-mirror.service.d",
    "/run/systemd/system.control/git-mirror.service.d",
)
"""Where what a test changes of the unit lies."""

MEMORY_FOR_GIT_BYTES: Final = 40 << 20
"""Enough for all but what is large."""

CONFIGURATION: Final = f"""\
server: {{listen: "127.0.0.1:{PORT}", public_url: "http://127.0.0.1:{PORT}", drain_timeout: 3s}}
data_dir: /var/lib/git-mirror
defaults: {{poll_interval: never, hold: 30s, bundle_interval: 1s, bundle_bytes_min: 0}}
repositories:
  {NAME}:
    upstream: http://127.0.0.1:{FORGE_PORT}/{NAME}.git
    forge: github
    credentials: {{username: x-access-token, password_file: secrets/github-token}}
    webhook_secret_file: secrets/github-webhook
relays:
  receiver:
    type: flux
    url: http://127.0.0.1:{RECEIVER_PORT}/hook/x
    secret_file: secrets/github-webhook
"""
FORBIDDEN: Final = re.compile(
    r"not permitted|Permission denied|Read-only file system|Traceback|Bad system call|core-dump"
)


# --- the machine ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    """A Debian that has come up."""
    guest = Guest()
    try:
        need("unshare", "nsenter", "setpriv", "pivot_root", "tar")
        debian(*PACKAGES)  # while there is a network
        wheels()
        with loopback_of_its_own():
            try:
                guest.boot()
                yield guest
            finally:
                guest.close()
    except Unbuildable as error:
        pytest.skip(f"systemd can't be booted here: {error}")


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Upstream:
    upstream = Upstream(tmp_path_factory.mktemp("forge"))
    upstream.commit(files={f"big/{number}": _noise(number) for number in range(4)})
    return upstream


@pytest.fixture
async def forge(upstream: Upstream, guest: Guest) -> AsyncIterator[HttpBackend]:
    del guest  # it brings the network
    root = upstream.path.parents[1]
    account = ("x-access-token", TOKEN)
    async with HttpBackend(root, port=FORGE_PORT, basic_auth=account) as forge:
        yield forge


@pytest.fixture(scope="module")
def installed(guest: Guest) -> list[str]:
    """The service, installed and started as the documentation says; returns what was printed."""
    checkout = guest.path("/root/git-mirror")
    checkout.mkdir()
    archive = guest.path("/root/checkout.tar")
    files = run("git", "ls-files", "mirror", "config", "docs", "systemd", "requirements", "*.*")
    wanted = [line for line in files.splitlines() if not line.startswith(("tests/", "benchmarks/"))]
    run("tar", "--create", f"--file={archive}", *wanted)
    guest.sh("tar --extract --file=checkout.tar --directory=git-mirror")
    guest.path("/opt/wheels").mkdir()
    guest.path("/etc/pip.conf").write_text("[global]\nno-index = 1\nfind-links = /opt/wheels\n")
    run("cp", "--recursive", f"{wheels()}/.", str(guest.path("/opt/wheels")))
    (checkout / "config/mirror.yaml").write_text(CONFIGURATION)
    said = []
    for line in documented():
        name = line.rpartition("/secrets/")[2] if "/dev/stdin" in line else ""
        given = f"echo {shlex.quote(SECRETS[name])} | " if name else ""
        # Its status may be that the first clone is not done yet.
        check = "git-mirror status" not in line
        said.append(guest.sh(f"cd /root/git-mirror; {given}{line}", check=check))
    return said


def documented() -> list[str]:
    """Return the commands by which the documentation installs it."""
    text = (ROOT / "docs/operations.md").read_text()
    block = text.split("**Install**")[1].split("```console\n")[1].split("```")[0]
    return [line.removeprefix("# ") for line in block.splitlines()]


class Service:
    """The service in the guest."""

    def __init__(self, guest: Guest, upstream: Upstream, told: "asyncio.Queue[Any]") -> None:
        self.guest = guest
        self.upstream = upstream
        self.told = told  # what the receiver of events was sent
        self.expected: str | None = None  # what may be complained of

    async def restart(self) -> None:
        await self.guest.run("systemctl reset-failed git-mirror; systemctl restart git-mirror")

    def configure(self, *changes: tuple[str, str]) -> None:
        """Write the configuration as it was installed, with these changes."""
        text = CONFIGURATION
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        self.guest.path(CONFIG).write_text(text)

    async def sync(self, name: str = NAME) -> None:
        """Wait until it shows what the upstream has."""
        await self.guest.run(f"{MIRROR} sync {name}")

    async def pid(self) -> int:
        return int((await self.guest.show("MainPID"))["MainPID"])

    async def until(self, **wanted: str) -> dict[str, str]:
        """Wait until the unit's properties match these patterns; returns them."""
        async with asyncio.timeout(90):
            while True:
                found = await self.guest.show(*wanted)
                if all(re.fullmatch(wanted[name], found[name]) for name in wanted):
                    return found

    async def events(self, since: str) -> list[dict[str, Any]]:
        """Return what it logged after a cursor; each line of its own is JSON."""
        lines = (await self._journal(since)).splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    async def cursor(self) -> str:
        """Return where the journal ends."""
        said = await self.guest.run("journalctl --sync; journalctl --lines=1 --show-cursor")
        return said.rpartition("-- cursor: ")[2].strip()

    async def logged(self, since: str, event: str) -> dict[str, Any]:
        """Wait for an event, and return it."""
        async with asyncio.timeout(90):
            while True:
                for found in await self.events(since):
                    if found["event"] == event:
                        return found

    async def _journal(self, since: str) -> str:
        unit = "--unit=git-mirror.service --output=cat"
        after = f"--after-cursor={shlex.quote(since)}"
        return await self.guest.run(f"journalctl --sync; journalctl {unit} {after}")

    async def complaints(self, since: str) -> list[str]:
        """Return what the sandbox kept it from, as far as it was logged."""
        found = [one for one in (await self._journal(since)).splitlines() if FORBIDDEN.search(one)]
        return [one for one in found if self.expected is None or self.expected not in one]

    async def push(self) -> str:
        """Push, and announce it; returns the new tip."""
        before, after = self.upstream.oid(), self.upstream.commit()
        url = f"http://127.0.0.1:{FORGE_PORT}/{NAME}.git"
        body = github_push(url, "refs/heads/main", before, after)
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                f"http://127.0.0.1:{PORT}/webhooks/github", data=body, headers=github_headers(body)
            ) as answer,
        ):
            assert answer.status == 202
        return after

    @asynccontextmanager
    async def polled(self) -> AsyncIterator[Seen]:
        """Poll it meanwhile; no poll may fail, nor be refused."""
        seen = Seen(tips=[self.upstream.oid()])
        async with asyncio.TaskGroup() as readers:
            for number in range(READERS):
                version, kept = (0, 2)[number % 2], number < READERS // 2
                readers.create_task(
                    poll(seen, by_port(PORT), NAME, version=version, kept=kept, pause_seconds=0.05)
                )
            yield seen
            seen.is_over.set()
        assert seen.failures == []
        assert len(seen.answers) == READERS


@pytest.fixture
async def told(guest: Guest) -> "AsyncIterator[asyncio.Queue[Any]]":
    """What a receiver of events is sent."""
    del guest  # it brings the network
    told: asyncio.Queue[Any] = asyncio.Queue()

    async def take(request: web.Request) -> web.Response:
        told.put_nowait(await request.json())
        return web.Response()

    receiver = web.Application()
    receiver.router.add_post("/hook/x", take)
    runner = web.AppRunner(receiver)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", RECEIVER_PORT).start()
    yield told
    await runner.cleanup()


@pytest.fixture
async def service(
    guest: Guest,
    installed: list[str],
    forge: HttpBackend,
    upstream: Upstream,
    told: "asyncio.Queue[Any]",
) -> AsyncIterator[Service]:
    """The service, started anew and up to date; what it does may not be forbidden to it."""
    del installed, forge
    service = Service(guest, upstream, told)
    since = await service.cursor()
    await service.restart()
    await service.sync()
    yield service
    complaints = await service.complaints(since)
    service.configure()
    await guest.run(f"rm -rf {' '.join(CHANGES)}; systemctl daemon-reload")
    assert complaints == []


async def _drop_in(guest: Guest, *lines: str) -> None:
    """Change the unit, for this test; counts from the next start on."""
    directory = guest.path("/etc/systemd/system/git-mirror.service.d")
    directory.mkdir(exist_ok=True)
    (directory / "test.conf").write_text("\n".join(["[Service]", *lines]) + "\n")
    await guest.run("systemctl daemon-reload")


def _noise(seed: int) -> bytes:
    import random  # noqa: PLC0415 - for this alone

    return random.Random(seed).randbytes(4 << 20)


async def _certificate_name(authority: Authority) -> str:
    """Return the name in the certificate that a new connection is shown."""
    context = ssl.create_default_context(cafile=authority.file)
    _, writer = await asyncio.open_connection("127.0.0.1", PORT, ssl=context)
    certificate = writer.get_extra_info("peercert")
    writer.transport.abort()
    return str(dict(certificate["subject"][0])["commonName"])


# --- the tests -----------------------------------------------------------------------------------


async def test_installed_by_the_book_it_serves_and_is_confined(
    service: Service, guest: Guest, git_client: GitClient
) -> None:
    clone = await git_client.clone(URL)
    assert await git_client.rev_parse(clone, "HEAD") == service.upstream.oid()
    await git_client.fsck(clone)
    await service.until(StatusText="serving 1 repository: 1 fresh")
    units = await guest.show("ActiveState", "UnitFileState", "TasksMax", "MemoryMax")
    assert units["ActiveState"] == "active"
    assert units["UnitFileState"] == "enabled"
    assert (units["TasksMax"], units["MemoryMax"]) == ("512", str(3 << 30))
    modes = await guest.run("stat --format='%a %U %G' /var/lib/git-mirror")
    assert modes == "750 git-mirror git-mirror\n"
    loose = await guest.run("find /var/lib/git-mirror -not -type l -perm /o=rwx -o -perm /g=w")
    assert loose == ""
    status = await guest.run(f"cat /proc/{await service.pid()}/status")
    told = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert int(told["CapEff"], 16) == int(told["CapBnd"], 16) == 0
    assert (told["NoNewPrivs"], told["Seccomp"], told["Umask"]) == ("1", "2", "0027")
    verdict = await guest.run("systemd-analyze security git-mirror.service")
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", verdict)
    assert found is not None
    assert float(found[1]) <= 1.5


async def test_all_that_it_does_is_allowed(
    service: Service, guest: Guest, git_client: GitClient
) -> None:
    since = await service.cursor()
    clone = await git_client.clone(URL)
    tip = ""
    for _ in range(30):  # more than 24 packs are merged by `git repack`
        tip = await service.push()
        await git_client.fetch(clone)
        assert await git_client.rev_parse(clone, "origin/main") == tip
    while (await asyncio.wait_for(service.told.get(), 90))["refs"][0]["after"] != tip:
        pass
    await git_client.fsck(clone)
    await service.logged(since, "maintained")
    await service.logged(since, "bundled")
    shallow = await git_client.clone(URL, "--depth=1", "--filter=blob:none", "--no-checkout")
    assert await git_client.rev_parse(shallow, "HEAD") == tip
    said = await guest.run(
        f"{MIRROR} fsck; {MIRROR} status; {MIRROR} token create flux --repositories 'acme/*';"
        f" runuser -u git-mirror -- {MIRROR} token list;"
        f" {MIRROR} check --online; {MIRROR} doctor || true;"
        f" git --git-dir=/var/lib/git-mirror/repositories/{NAME}.git"
        " -c safe.directory='*' fsck --strict --connectivity-only"
    )
    assert "flux" in said


async def test_systemd_hands_over_secrets_that_only_root_can_read(
    service: Service, guest: Guest
) -> None:
    guest.path("/root/token").write_text(TOKEN + "\n")
    await guest.run(
        "chmod 0600 /root/token; systemctl stop git-mirror; rm -r /var/lib/git-mirror/*"
    )
    service.configure(("secrets/github-token", "$CREDENTIALS_DIRECTORY/github-token"))
    await _drop_in(guest, "LoadCredential=github-token:/root/token")
    await service.restart()
    await service.sync()
    there = "CREDENTIALS_DIRECTORY=/run/credentials/git-mirror.service"
    for user in ("root", "git-mirror"):
        await guest.run(f"runuser -u {user} -- env {there} {MIRROR} check --online")
    assert "CREDENTIALS_DIRECTORY=" in await guest.run(f"{MIRROR} check", check=False)


async def test_a_reload_is_told_and_a_bad_one_is_refused(service: Service, guest: Guest) -> None:
    async with service.polled():
        for number in range(1, 3):
            service.configure(("poll_interval: never", f"poll_interval: {number}h"))
            await guest.run("systemctl reload git-mirror")
            since = await service.cursor()
            service.configure(("poll_interval: never", "nonsense: 1"))
            said = await guest.run("systemctl reload git-mirror", check=False)
            assert "failed" in said
            await service.logged(since, "configuration_refused")
            found = await guest.show("ActiveState", "SubState", "NRestarts")
            assert found == {"ActiveState": "active", "SubState": "running", "NRestarts": "0"}


async def test_an_upgrade_becomes_the_unit_and_still_stops_gently(
    service: Service, guest: Guest
) -> None:
    # So long that the clone below is done, however busy the machine is.
    service.configure(("drain_timeout: 3s", "drain_timeout: 20s"))
    before = await service.pid()
    since = await service.cursor()
    async with service.polled():
        await guest.run(
            "cp --recursive /opt/git-mirror-0.1.0 /opt/git-mirror-0.2.0;"
            " sed -i s,git-mirror-0.1.0,git-mirror-0.2.0, /opt/git-mirror-0.2.0/bin/*;"
            " ln -sfn /opt/git-mirror-0.2.0 /opt/git-mirror"
        )
        await guest.run(f"runuser -u git-mirror -- {MIRROR} upgrade")
        await service.logged(since, "took_over")
    after = await service.pid()
    assert after != before
    command = await guest.run(f"tr '\\0' ' ' </proc/{after}/cmdline")
    assert command.startswith("/opt/git-mirror-0.2.0/")
    clone = await SlowClone.begin(slowly(PORT), NAME, service.upstream.oid())
    stopping = asyncio.create_task(guest.run("systemctl stop git-mirror"))
    await service.logged(since, "stopping")
    assert await clone.finish() > 4 << 20
    await stopping
    found = await guest.show("ActiveState", "Result", "NRestarts")
    assert found == {"ActiveState": "inactive", "Result": "success", "NRestarts": "0"}
    await guest.run("ln -sfn /opt/git-mirror-0.1.0 /opt/git-mirror")


async def test_a_restart_refuses_nobody(service: Service, guest: Guest) -> None:
    async with service.polled():
        for _ in range(3):
            await guest.run("systemctl restart git-mirror")
    # And a stopped one is started by who connects.
    await guest.run("systemctl stop git-mirror")
    listing = f"{URL}/info/refs?service=git-upload-pack"
    async with aiohttp.ClientSession() as session, session.get(listing) as answer:
        assert answer.status == 200
    await service.until(ActiveState="active")


async def test_a_stop_waits_for_clones_but_not_for_ever(service: Service, guest: Guest) -> None:
    since = await service.cursor()
    clone = await SlowClone.begin(slowly(PORT), NAME, service.upstream.oid())
    await guest.run("systemctl stop git-mirror")  # the clone takes nothing more
    clone.close()
    cut = await service.logged(since, "cut_off")
    assert cut["event"] == "cut_off"
    found = await guest.show("ActiveState", "Result")
    assert found == {"ActiveState": "inactive", "Result": "success"}


@pytest.mark.parametrize("upgraded", [False, True])
async def test_the_watchdog_restarts_a_process_that_hangs(
    service: Service, guest: Guest, *, upgraded: bool
) -> None:
    await _drop_in(guest, "WatchdogSec=5s")
    await service.restart()
    if upgraded:
        await guest.run(f"{MIRROR} upgrade")
    hung = await service.pid()
    await guest.run(f"kill -STOP {hung}")
    # Not by the count of restarts: on a busy machine 5 seconds may have been too short before.
    await service.until(MainPID=rf"(?!{hung}$)[1-9]\d*", ActiveState="active")
    await service.sync()


async def test_a_process_that_is_killed_is_started_again_even_after_an_upgrade(
    service: Service, guest: Guest
) -> None:
    await guest.run(f"{MIRROR} upgrade")
    killed = await service.pid()
    async with asyncio.timeout(90):
        await guest.run(f"kill -KILL {killed}")
        await service.until(NRestarts="1", ActiveState="active")
    await service.sync()


async def test_git_that_takes_too_much_memory_does_not_end_the_service(
    service: Service, guest: Guest, git_client: GitClient
) -> None:
    large = Upstream(service.upstream.path.parents[1], "acme/large")
    large.config("core.compression", "1")
    large.commit()
    there = f"http://127.0.0.1:{FORGE_PORT}/{large.name}.git"
    credentials = "{username: x-access-token, password_file: secrets/github-token}"
    more = f"  {large.name}: {{upstream: {there!r}, credentials: {credentials}}}\nrelays:"
    service.configure(("relays:", more))
    await guest.run("systemctl reload git-mirror")
    await service.sync(large.name)
    used = (await guest.show("MemoryCurrent"))["MemoryCurrent"]  # with what it wrote to the disk
    limit = int(used) + MEMORY_FOR_GIT_BYTES
    await guest.run(f"systemctl set-property --runtime git-mirror MemoryMax={limit}")
    since = await service.cursor()
    # Its pack is small, for the guest's disk is memory, too; and too large to be read without git.
    large.commit(files={"large": bytes(128 << 20), "noise": _noise(0)})
    await guest.run(f"{MIRROR} sync {large.name}", check=False)
    failed = await service.logged(since, "refresh_failed")
    assert failed["repository"] == large.name
    assert "(-9)" in failed["error"]
    found = await guest.show("ActiveState", "NRestarts")
    assert found == {"ActiveState": "active", "NRestarts": "0"}
    assert service.upstream.oid() in (await git_client.ls_remote(URL)).values()
    await guest.run("systemctl set-property --runtime git-mirror MemoryMax=3G")
    await service.sync(large.name)


async def test_without_a_task_more_it_serves_on_and_recovers(
    service: Service, guest: Guest, git_client: GitClient
) -> None:
    service.expected = "can't start new thread"
    service.configure(("hold: 30s", "hold: 1s"))
    await guest.run("systemctl reload git-mirror")
    used = (await guest.show("TasksCurrent"))["TasksCurrent"]
    await guest.run(f"systemctl set-property --runtime git-mirror TasksMax={used}")
    tip = await service.push()
    listed = await git_client.ls_remote(URL)
    assert listed
    await guest.run("systemctl set-property --runtime git-mirror TasksMax=512")
    await service.sync()
    assert tip in (await git_client.ls_remote(URL)).values()


async def test_it_speaks_tls_and_takes_a_renewed_certificate(
    service: Service, guest: Guest, git_client: GitClient, tmp_path: Path
) -> None:
    authority = Authority.make(tmp_path)
    place = "/etc/git-mirror/tls.pem"

    async def put(name: str) -> None:
        guest.path(f"{place}.new").write_bytes(authority.issue(tmp_path, name=name).read_bytes())
        await guest.run(
            f"chmod 0640 {place}.new; chgrp git-mirror {place}.new; mv {place}.new {place}"
        )

    await put("first")
    pair = "server: {tls: {certificate_file: tls.pem, key_file: tls.pem}, "
    service.configure(
        ("server: {", pair), (f"http://127.0.0.1:{PORT}", f"https://127.0.0.1:{PORT}")
    )
    await service.restart()
    await service.sync()
    trusting = ("-c", f"http.sslCAInfo={authority.file}")
    secure = f"https://127.0.0.1:{PORT}/{NAME}"
    await git_client.run(*trusting, "clone", secure, "tls")
    since = await service.cursor()
    await put("second")
    await service.logged(since, "certificate_loaded")
    await git_client.run(*trusting, "ls-remote", secure)
    assert await _certificate_name(authority) == "second"
