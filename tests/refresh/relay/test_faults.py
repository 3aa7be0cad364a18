"""What becomes of receivers that do not listen, and of what goes wrong here."""

import asyncio
import sqlite3
import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from structlog.testing import capture_logs

from mirror.demo.forge import HttpBackend
from mirror.refresh.relay import events, sender
from mirror.refresh.relay.ledger import Ledger
from mirror.refresh.relay.relays import probe_receivers
from tests.git_client import Upstream
from tests.mirror_service import (
    configuration,
    serving,
)
from tests.ports import free_port
from tests.refresh.relay.receiving import (
    SECRET,
    Receiver,
    receiving,
    refuse,
    relays,
)
from tests.refresh.relay.telling import failed, push, refresh, telling

MAIN = "refs/heads/main"


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

    gone = free_port()
    async with receiving() as hanging:
        hanging.answer = hang
        async with telling(
            forge,
            tmp_path,
            dead=f"argocd http://127.0.0.1:{gone}/x",
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
            async with receiving(port=gone) as back:
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
    port = free_port()
    one = f"argocd http://127.0.0.1:{port}/x"
    before = upstream.oid()
    async with telling(forge, tmp_path, one=one) as mirror:
        await push(mirror, upstream)
        await failed(mirror, "one")
    middle = upstream.oid()
    async with receiving(port=port) as back:
        async with telling(forge, tmp_path, one=one):
            assert [event.step for event in await back.came(1)] == [(MAIN, before, middle)]
        async with telling(forge, tmp_path, one=one) as mirror:
            after = await push(mirror, upstream)
            assert [event.step for event in (await back.came(2))[1:]] == [(MAIN, middle, after)]


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
