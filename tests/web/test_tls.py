"""TLS that the service speaks itself: with the real git, and with certificates that change."""

import asyncio
import shutil
import ssl
from pathlib import Path

import pytest
import structlog

from mirror.config import TlsSettings
from mirror.demo.forge import HttpBackend
from mirror.errors import LocalError
from mirror.metrics import Metrics
from mirror.web.tls import Tls
from tests.certificates import Authority
from tests.git_client import GitClient, Upstream
from tests.mirror_service import mirroring


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.make(tmp_path)


async def handshake(
    port: int, authority: Authority, *, context: ssl.SSLContext | None = None
) -> tuple[dict[str, object], str]:
    """Shake hands; returns the server's certificate and the protocol's version."""
    context = context or ssl.create_default_context(cafile=str(authority.file))
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        connection = writer.get_extra_info("ssl_object")
        return connection.getpeercert(), connection.version()
    finally:
        writer.close()


@pytest.mark.parametrize(("workers", "branches"), [(1, 1500), (2, 10)])
async def test_git_reads_over_tls_large_answers_too(
    forge: HttpBackend,
    upstream: Upstream,
    tmp_path: Path,
    authority: Authority,
    workers: int,
    branches: int,
) -> None:
    upstream.branches(
        dict.fromkeys((f"branch-{number}" for number in range(branches)), upstream.oid())
    )
    served = authority.issue(tmp_path)
    async with mirroring(
        forge,
        tmp_path / "m",
        names=[upstream.name],
        workers=workers,
        server=f"tls: {{certificate_file: {served}, key_file: {served}}}",
        tls=authority.file,
    ) as mirror:
        client = GitClient(tmp_path / "client", 0, config={"http.sslCAInfo": str(authority.file)})
        for _ in range(3):  # the second and the third are known by heart
            assert await client.ls_remote(mirror.url(), "--refs") == upstream.refs()
        clone = await client.clone(mirror.url())
        upstream.commit()
        await mirror.announce(upstream)
        await client.fetch(clone)
        assert await client.rev_parse(clone, "origin/main") == upstream.oid()
        assert await mirror.metric("git_mirror_certificate_expires_timestamp_seconds")
        plain = await GitClient(tmp_path / "plain").run(
            "ls-remote", mirror.url().replace("https", "http"), check=False
        )
        assert plain.returncode != 0


async def serve(tls: Tls) -> asyncio.Server:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    return await asyncio.start_server(hang_up, "127.0.0.1", 0, ssl=tls.context)


async def test_a_new_certificate_counts_from_the_next_connection_on(
    tmp_path: Path, authority: Authority
) -> None:
    file = tmp_path / "served.pem"
    shutil.copy(authority.issue(tmp_path), file)
    tls = Tls(TlsSettings(pairs=((file, file),)), Metrics("1"))
    async with await serve(tls) as server:
        port = server.sockets[0].getsockname()[1]
        before, _ = await handshake(port, authority)
        assert not await tls.look_again()
        shutil.copy(authority.issue(tmp_path), file)
        assert await tls.look_again()
        after, version = await handshake(port, authority)
        assert before["serialNumber"] != after["serialNumber"]
        assert version == "TLSv1.3"


async def test_a_certificate_that_can_not_be_used_changes_nothing(
    tmp_path: Path, authority: Authority
) -> None:
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    first, second = authority.issue(tmp_path), authority.issue(tmp_path)
    shutil.copy(first, certificate)
    shutil.copy(first, key)
    tls = Tls(TlsSettings(pairs=((certificate, key),)), Metrics("1"))
    async with await serve(tls) as server:
        port = server.sockets[0].getsockname()[1]
        before, _ = await handshake(port, authority)
        shutil.copy(second, certificate)
        with structlog.testing.capture_logs() as logs:
            assert not await tls.look_again(), "one file of two is new"
        assert logs[0]["event"] == "certificate_not_loaded"
        assert (await handshake(port, authority))[0] == before
        shutil.copy(second, key)
        assert await tls.look_again()
        assert (await handshake(port, authority))[0] != before
        certificate.unlink()
        assert not await tls.look_again()
        assert (await handshake(port, authority))[0] != before


async def test_another_authority_for_clients_counts_too(
    tmp_path: Path, authority: Authority
) -> None:
    served, accepted = authority.issue(tmp_path), tmp_path / "clients.pem"
    other_place = tmp_path / "other"
    other_place.mkdir()
    other = Authority.make(other_place)
    shutil.copy(authority.file, accepted)
    tls = Tls(TlsSettings(pairs=((served, served),), client_ca_file=accepted), Metrics("1"))
    seen: list[object] = []
    closed = asyncio.Event()

    async def note(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(writer.get_extra_info("ssl_object").getpeercert())
        writer.close()
        closed.set()

    async with await asyncio.start_server(note, "127.0.0.1", 0, ssl=tls.context) as server:
        port = server.sockets[0].getsockname()[1]
        context = ssl.create_default_context(cafile=str(authority.file))
        context.load_cert_chain(other.issue(other_place))
        shutil.copy(other.file, accepted)
        assert await tls.look_again()
        await handshake(port, authority, context=context)
        await closed.wait()
        assert seen[0]


async def test_clients_choose_between_two_kinds_of_keys_and_old_protocols_are_refused(
    tmp_path: Path, authority: Authority
) -> None:
    elliptic, rsa = authority.issue(tmp_path), authority.issue(tmp_path, is_rsa=True)
    tls = Tls(TlsSettings(pairs=((elliptic, elliptic), (rsa, rsa))), Metrics("1"))
    async with await serve(tls) as server:
        port = server.sockets[0].getsockname()[1]
        serials = set()
        for cipher in ("ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-GCM-SHA256"):
            context = ssl.create_default_context(cafile=str(authority.file))
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            context.set_ciphers(cipher)
            certificate, version = await handshake(port, authority, context=context)
            serials.add(certificate["serialNumber"])
            assert version == "TLSv1.2"
        assert len(serials) == 2
        old = ssl.create_default_context(cafile=str(authority.file))
        with pytest.warns(DeprecationWarning):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await handshake(port, authority, context=old)


def test_a_certificate_that_is_none_ends_the_start(tmp_path: Path, authority: Authority) -> None:
    broken = tmp_path / "broken.pem"
    broken.write_text("nothing")
    with pytest.raises(LocalError, match="can't be used"):
        Tls(TlsSettings(pairs=((broken, broken),)), Metrics("1"))
    good = authority.issue(tmp_path)
    with pytest.raises(LocalError, match="can't be used"):
        Tls(TlsSettings(pairs=((good, good),), client_ca_file=broken), Metrics("1"))
