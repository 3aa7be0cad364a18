"""The service tells receivers: what, when, and what becomes of those that do not listen."""

import asyncio
import sqlite3
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from structlog.testing import capture_logs

from mirror.demo.forge import HttpBackend
from mirror.refresh.mirror import Mirror
from mirror.refresh.refresher import Trigger
from mirror.refresh.relay import events, outbox, sender
from mirror.refresh.relay.ledger import Ledger
from mirror.refresh.relay.relays import probe_receivers
from tests.git_client import Upstream
from tests.mirror_service import (
    NAME,
    WAIT_SECONDS_MAX,
    ZERO_ID,
    MirrorService,
    configuration,
    mirroring,
    serving,
)
from tests.refresh.relay.receiving import (
    PUBLIC_URL,
    SECRET,
    Receiver,
    receiving,
    refuse,
    relays,
)

MAIN = "refs/heads/main"


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as running:
        yield running


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the pauses after failures be short: how long they are is tested with the outbox."""
    monkeypatch.setattr(outbox, "PASSING_SECONDS", (0.01, 0.02))
    monkeypatch.setattr(outbox, "LASTING_SECONDS", (0.01, 0.02))


@asynccontextmanager
async def telling(
    forge: HttpBackend, directory: Path, *, workers: int = 1, **urls: str
) -> AsyncIterator[MirrorService]:
    """Run the service with the relays `urls`, as `relays` has them."""
    sections = relays(directory / "mirror", **urls)
    async with mirroring(
        forge, directory / "mirror", sections=sections, workers=workers
    ) as running:
        yield running


async def push(mirror: MirrorService, upstream: Upstream, **files: str) -> str:
    """Push a commit to main, and deliver its webhook."""
    after = upstream.commit(files=files or None)
    await mirror.announce(upstream)
    return after


async def refresh(mirror: MirrorService) -> None:
    """Poll the upstream."""
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        await asyncio.shield(mirror.hosted().refresher.request(Trigger.POLL))


async def status(mirror: MirrorService, relay: str) -> dict[str, Any]:
    found: dict[str, Any] = (await mirror.get("/status.json")).json["relays"][relay]
    return found


async def failed(mirror: MirrorService, relay: str, error: str = "") -> str:
    """Wait until the status shows an error of a receiver with these words in it, and return it."""
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        while True:
            shown = (await status(mirror, relay))["last_error"]
            if shown is not None and error in shown:
                return str(shown)


async def all_told(mirror: MirrorService, relay: str) -> dict[str, Any]:
    """Wait until a receiver is to be told nothing more, and return its status."""
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        while (shown := await status(mirror, relay))["pending"]:
            pass
    return shown


async def test_a_push_is_told_as_github_would_with_the_mirrors_own_url(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, receiver: Receiver
) -> None:
    before = upstream.oid()
    async with telling(forge, tmp_path, argo=f"argocd {receiver.url}/api/webhook") as mirror:
        after = await push(mirror, upstream, new="1", **{"README.md": "2"})
        (event,) = await receiver.came(1)
        assert (event.path, event.step) == ("/api/webhook", (MAIN, before, after))
        assert event.headers["X-GitHub-Event"] == "push"
        repository = event.json["repository"]
        assert repository["html_url"] == f"{PUBLIC_URL}/{NAME}"
        assert (repository["full_name"], repository["default_branch"]) == (NAME, "main")
        (commit,) = event.json["commits"]
        assert (commit["added"], commit["modified"], commit["removed"]) == (
            ["new"],
            ["README.md"],
            [],
        )
        shown = await all_told(mirror, "argo")
        assert (await mirror.metric("git_mirror_relay_lag_seconds_count", relay="argo")) == 1
        assert shown["last_error"] is None
        assert shown["last_delivery_at"] is not None


async def test_what_a_poll_found_is_told_too(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, receiver: Receiver
) -> None:
    before = upstream.oid()
    async with telling(forge, tmp_path, argo=f"argocd {receiver.url}/x") as mirror:
        after = upstream.commit()
        await refresh(mirror)
        assert [event.step for event in await receiver.came(1)] == [(MAIN, before, after)]


async def test_nothing_is_told_before_every_process_serves_it(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, receiver: Receiver
) -> None:
    class Slow:
        """Workers that take until the test says so."""

        def __init__(self) -> None:
            self.asked, self.done = asyncio.Event(), asyncio.Event()

        async def announced(self, _: Mirror) -> None:
            """Have nothing to do."""

        async def refreshed(self, _: Mirror) -> None:
            self.asked.set()
            await self.done.wait()

    async with telling(forge, tmp_path, argo=f"argocd {receiver.url}/x") as mirror:
        slow = mirror.mirror().replicas = Slow()
        after = upstream.commit()
        refreshing = asyncio.create_task(refresh(mirror))
        await slow.asked.wait()
        found = mirror.mirror().snapshot
        assert found is not None
        assert found.head == after.encode()  # published here already
        shown = await status(mirror, "argo")
        assert (shown["pending"], receiver.events) == (0, [])
        slow.done.set()
        await refreshing
        assert [event.step[2] for event in await receiver.came(1)] == [after]


@pytest.mark.parametrize("kind", ["argocd", "flux", "webhook"])
async def test_refs_that_come_and_go_and_are_forced_are_told(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, receiver: Receiver, kind: str
) -> None:
    first = upstream.oid()
    old = upstream.commit("old")
    async with telling(forge, tmp_path, one=f"{kind} {receiver.url}/x") as mirror:
        forced = upstream.commit(parents=[])
        tag = upstream.tag("v1", forced)
        upstream.delete_ref("old")
        await refresh(mirror)
        wanted = {
            (MAIN, first, forced),
            ("refs/tags/v1", ZERO_ID, tag),
            ("refs/heads/old", old, ZERO_ID),
        }
        arrived = await receiver.came(1 if kind == "flux" else 3)
        if kind == "flux":
            steps = {(one["ref"], one["before"], one["after"]) for one in arrived[0].json["refs"]}
        elif kind == "argocd":
            steps = {event.step for event in arrived}
            flags = {
                event.json["ref"]: [
                    name for name in ("created", "deleted", "forced") if event.json[name]
                ]
                for event in arrived
            }
            assert flags == {
                MAIN: ["forced"],
                "refs/tags/v1": ["created"],
                "refs/heads/old": ["deleted"],
            }
            assert all(event.json["commits"] == [] for event in arrived)
        else:
            data = [event.json["data"] for event in arrived]
            steps = {
                (one["ref"], one["before"] or ZERO_ID, one["after"] or ZERO_ID) for one in data
            }
            assert all(one["files"] is None for one in data)
        assert steps == wanted


async def test_fleet_is_told_of_branches_alone_and_never_of_a_deletion(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, receiver: Receiver
) -> None:
    upstream.commit("old")
    async with telling(forge, tmp_path, fleet=f"fleet {receiver.url}/") as mirror:
        upstream.delete_ref("old")
        upstream.tag("v1")
        await refresh(mirror)
        assert (await status(mirror, "fleet"))["pending"] == 0
        again = upstream.commit("old")
        await refresh(mirror)
        assert [event.step for event in await receiver.came(1)] == [
            ("refs/heads/old", ZERO_ID, again)
        ]


async def test_a_receiver_is_told_of_the_repositories_that_it_is_for(
    forge: HttpBackend, upstream: Upstream, upstream_root: Path, tmp_path: Path, receiver: Receiver
) -> None:
    other = Upstream(upstream_root, "other/app")
    other.commit()
    secret = Upstream(upstream_root, "acme/secret")
    secret.commit()
    sections = relays(
        tmp_path / "mirror",
        one=f'argocd {receiver.url}/x repositories: ["acme/*", "!acme/sec*"]',
    )
    names = [upstream.name, other.name, secret.name]
    async with mirroring(forge, tmp_path / "mirror", names=names, sections=sections) as mirror:
        for one in (secret, other, upstream):
            one.commit()
            await mirror.announce(one)
            await mirror.caught_up(one)
        arrived = await receiver.came(1)
        assert [event.json["repository"]["full_name"] for event in arrived] == [upstream.name]
        await all_told(mirror, "one")
        assert len(receiver.events) == 1


async def test_controllers_that_write_the_mirror_in_two_ways_are_told_in_both(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, receiver: Receiver
) -> None:
    urls = 'public_urls: ["https://a.example", "http://b.example:8470/git/"]'
    async with telling(forge, tmp_path, one=f"argocd {receiver.url}/x {urls}") as mirror:
        after = await push(mirror, upstream)
        arrived = await receiver.came(2)
        assert [event.json["repository"]["html_url"] for event in arrived] == [
            f"https://a.example/{NAME}",
            f"http://b.example:8470/git/{NAME}",
        ]
        assert {event.step[2] for event in arrived} == {after}
        assert len({event.headers["X-GitHub-Delivery"] for event in arrived}) == 2


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("status_code", [500, 429, 400, 401, 301])
async def test_what_a_receiver_does_not_take_is_sent_again_with_the_same_id(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, receiver: Receiver, status_code: int
) -> None:
    headers = {"Location": f"{receiver.url}/elsewhere"}
    receiver.answer = refuse(status_code, status_code, headers=headers)
    async with telling(forge, tmp_path, one=f"argocd {receiver.url}/x") as mirror:
        after = await push(mirror, upstream)
        await receiver.came(1)
        assert [event.status for event in receiver.events] == [status_code, status_code, 200]
        assert {event.step[2] for event in receiver.events} == {after}
        assert {event.path for event in receiver.events} == {"/x"}
        assert len({event.headers["X-GitHub-Delivery"] for event in receiver.events}) == 1
        kind = "unavailable" if status_code in (500, 429) else "refused"
        failures = await mirror.metric("git_mirror_relay_failures_total", relay="one", kind=kind)
        assert failures == 2


async def test_a_pause_that_a_receiver_asks_for_is_kept(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, receiver: Receiver
) -> None:
    receiver.answer = refuse(429, headers={"Retry-After": "600"})
    with capture_logs() as logs:
        async with telling(forge, tmp_path, one=f"argocd {receiver.url}/x") as mirror:
            await push(mirror, upstream)
            await receiver.until(lambda one: one.events)
            await failed(mirror, "one")
    (pause,) = [log["next_try_seconds"] for log in logs if log["event"] == "relay_failed"]
    assert 590 < pause <= 600


@pytest.mark.usefixtures("soon")
async def test_receivers_that_are_dead_or_hang_delay_nobody_else_and_get_the_whole_range_later(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, receiver: Receiver
) -> None:
    before = upstream.oid()
    released = asyncio.Event()

    async def hang(_: Any) -> web.StreamResponse:
        await released.wait()
        return web.Response()

    async with receiving() as gone:
        pass
    async with receiving() as hanging:
        hanging.answer = hang
        async with telling(
            forge,
            tmp_path,
            dead=f"argocd {gone.url}/x",
            silent=f"argocd {hanging.url}/x timeout: 1s",
            well=f"argocd {receiver.url}/x",
        ) as mirror:
            for number in range(3):
                await push(mirror, upstream, **{f"file-{number}": "1"})
                await receiver.came(number + 1)
            after = upstream.oid()
            await failed(mirror, "dead", "can't be reached: Connection refused")
            await failed(mirror, "silent", "did not answer within 1 seconds")
            released.set()
            async with receiving(port=int(gone.url.rpartition(":")[2])) as back:
                (event,) = await back.came(1)
            assert event.step == (MAIN, before, after)
            assert event.json["commits"][0]["added"] == ["file-0", "file-1", "file-2"]
            await hanging.until(lambda one: one.taken and one.taken[-1].step[2] == after)


@pytest.mark.usefixtures("soon")
async def test_a_refs_changes_arrive_in_order_from_where_the_last_acknowledged_one_ended(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, receiver: Receiver
) -> None:
    tips = [upstream.oid()]
    flaky = 0

    async def answer(_: Any) -> web.StreamResponse:
        nonlocal flaky
        flaky += 1
        return web.Response(status=500 if flaky % 3 == 0 else 200)

    receiver.answer = answer
    async with telling(forge, tmp_path, one=f"argocd {receiver.url}/x") as mirror:
        tips += [await push(mirror, upstream) for _ in range(15)]
        await receiver.until(lambda one: one.taken and one.taken[-1].step[2] == tips[-1])
    known = tips[0]
    for event in receiver.taken:
        assert event.step[1] == known
        assert tips.index(event.step[2]) > tips.index(known)
        known = event.step[2]


@pytest.mark.usefixtures("soon")
async def test_what_could_not_be_told_before_a_restart_is_told_after_it(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    async with receiving() as receiver:
        pass
    before = upstream.oid()
    async with telling(forge, tmp_path, one=f"argocd {receiver.url}/x") as mirror:
        await push(mirror, upstream)
        await failed(mirror, "one")
    middle = upstream.oid()
    async with receiving(port=int(receiver.url.rpartition(":")[2])) as back:
        async with telling(forge, tmp_path, one=f"argocd {receiver.url}/x"):
            assert [event.step for event in await back.came(1)] == [(MAIN, before, middle)]
        async with telling(forge, tmp_path, one=f"argocd {receiver.url}/x") as mirror:
            after = await push(mirror, upstream)
            assert [event.step for event in (await back.came(2))[1:]] == [(MAIN, middle, after)]


async def test_what_changed_upstream_while_nothing_ran_is_told(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, receiver: Receiver
) -> None:
    before = upstream.oid()
    async with telling(forge, tmp_path, one=f"argocd {receiver.url}/x"):
        pass
    after = upstream.commit()
    async with telling(forge, tmp_path, one=f"argocd {receiver.url}/x"):
        assert [event.step for event in await receiver.came(1)] == [(MAIN, before, after)]


async def test_a_new_receiver_is_told_of_nothing_that_was_there_before(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, receiver: Receiver
) -> None:
    async with mirroring(forge, tmp_path / "mirror"):
        pass
    before = upstream.oid()
    async with telling(forge, tmp_path, one=f"argocd {receiver.url}/x") as mirror:
        assert (await status(mirror, "one"))["pending"] == 0
        after = await push(mirror, upstream)
        assert [event.step for event in await receiver.came(1)] == [(MAIN, before, after)]


async def test_a_relay_that_was_taken_out_begins_anew_when_it_comes_back(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, receiver: Receiver
) -> None:
    async with telling(forge, tmp_path, one=f"argocd {receiver.url}/x"):
        pass
    upstream.commit()
    async with telling(forge, tmp_path, other=f"flux {receiver.url}/hook/x"):
        pass
    async with telling(forge, tmp_path, one=f"argocd {receiver.url}/x") as mirror:
        before = upstream.oid()
        after = await push(mirror, upstream)
        await receiver.until(lambda one: one.taken and one.taken[-1].path == "/x")
        told = [event.step for event in receiver.taken if event.path == "/x"]
        assert told == [(MAIN, before, after)]


async def test_without_relays_nothing_is_kept(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    assert upstream.name == NAME
    async with mirroring(forge, tmp_path / "mirror") as mirror:
        assert not list((tmp_path / "mirror" / "data").glob("relays.db*"))
        assert (await mirror.get("/status.json")).json["relays"] == {}


@pytest.mark.usefixtures("soon")
async def test_a_wrong_secret_is_said_so_and_the_new_one_is_used_without_a_restart(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, receiver: Receiver
) -> None:
    wrong = "not the secret of the receiver"
    with capture_logs() as logs:
        async with telling(forge, tmp_path, one=f"flux {receiver.url}/hook/0123abcd") as mirror:
            file = tmp_path / "mirror" / "relay-secret"
            file.write_text(wrong)
            await push(mirror, upstream)
            error = await failed(mirror, "one")
            assert "answered 401: the signature does not fit" in error
            assert "secret_file" in error
            file.unlink()
            await failed(mirror, "one", "can't be used: No such file")
            file.write_text(SECRET)
            await receiver.came(1)
            everything = f"{logs} {await mirror.get('/status.json')} {await mirror.get('/metrics')}"
    for hidden in (wrong, SECRET, "0123abcd", receiver.events[0].headers["X-Signature"]):
        assert hidden not in everything


async def test_a_disk_that_takes_nothing_stops_no_event(
    forge: HttpBackend,
    upstream: Upstream,
    tmp_path: Path,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with capture_logs() as logs:
        async with telling(forge, tmp_path, one=f"argocd {receiver.url}/x") as mirror:
            monkeypatch.setattr(Ledger, "record", full)
            first, second = await push(mirror, upstream), await push(mirror, upstream)
            await receiver.until(lambda one: one.taken and one.taken[-1].step[2] == second)
            assert receiver.taken[0].step[2] in (first, second)
    assert "relay_not_noted" in {log["event"] for log in logs}


async def test_a_bug_with_one_event_stops_no_other(
    forge: HttpBackend,
    upstream: Upstream,
    tmp_path: Path,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(settings: Any, news: Any, key: bytes) -> Any:
        if news.told[0].change.ref == MAIN.encode():
            raise AssertionError("a bug")
        return events.requests(settings, news, key)

    monkeypatch.setattr(sender, "requests", broken)
    with capture_logs():
        async with telling(forge, tmp_path, one=f"argocd {receiver.url}/x") as mirror:
            upstream.commit()
            other = upstream.commit("other")
            await refresh(mirror)
            assert [event.step[2] for event in await receiver.came(1)] == [other]
            await failed(mirror, "one", "unexpected AssertionError")


def certificate(directory: Path) -> tuple[ssl.SSLContext, Path]:
    """Make a certificate for the loopback address; returns what serves it, and its file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a receiver")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    file, key_file = directory / "ca.pem", directory / "key.pem"
    directory.mkdir(parents=True, exist_ok=True)
    file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file, key_file)
    return context, file


async def test_certificates_are_verified_with_the_authorities_of_ca_file(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, receiver: Receiver
) -> None:
    tls, file = certificate(tmp_path)
    async with (
        receiving(tls=tls) as secured,
        telling(
            forge,
            tmp_path,
            known=f"argocd {secured.url}/x ca_file: {file}",
            unknown=f"argocd {secured.url}/x",
            plain=f"argocd {receiver.url.replace('http:', 'https:')}/x",
        ) as mirror,
    ):
        await push(mirror, upstream)
        await secured.came(1)
        await failed(mirror, "unknown", "certificate that is not trusted; see `ca_file`")
        await failed(mirror, "plain", "can't be reached: TLS failed (")
        problems = await probe_receivers(mirror.service.settings.relays.values())
        assert problems["known"] is None
        assert problems["unknown"] is not None
        assert "not trusted" in problems["unknown"]
        assert len(secured.events) == 1


async def test_a_probe_says_what_does_not_listen(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, receiver: Receiver
) -> None:
    async with receiving() as gone:
        pass
    sections = relays(
        tmp_path / "mirror", up=f"flux {receiver.url}/hook/x", down=f"flux {gone.url}/hook/y"
    )
    file = configuration(forge, tmp_path / "mirror", sections=sections)
    async with serving(file, forge) as mirror:
        await mirror.caught_up(upstream)
        problems = await probe_receivers(mirror.service.settings.relays.values())
    assert problems["up"] is None
    assert problems["down"] == f"{gone.url} can't be reached: Connection refused"
    assert receiver.events == []


async def test_with_workers_every_event_can_be_fetched_from_each_at_once(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, receiver: Receiver
) -> None:
    answers: list[bool] = []
    async with telling(forge, tmp_path, workers=2, one=f"argocd {receiver.url}/x") as mirror:

        async def answer(event: Any) -> web.StreamResponse:
            async with aiohttp.ClientSession() as session:
                for _ in range(6):  # connections of their own: the kernel spreads them
                    async with session.get(
                        f"{mirror.url()}/info/refs?service=git-upload-pack",
                        headers={"Connection": "close"},
                    ) as response:
                        answers.append(event["after"].encode() in await response.read())
            return web.Response()

        receiver.answer = answer
        for _ in range(5):
            await push(mirror, upstream)
            await mirror.caught_up(upstream)
        last = upstream.oid()
        await receiver.until(lambda one: one.taken and one.taken[-1].step[2] == last)
    assert len(answers) >= 6
    # A later push may have been served by then; the last one was there for sure.
    assert all(answers[-6:])
