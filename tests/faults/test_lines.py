"""An upstream that can't be reached as it should: certificates, names, connections."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from mirror.demo.forge import HttpBackend
from mirror.errors import Trouble
from tests.certificates import Authority
from tests.faults.catalogue import Fault, stall_at_once
from tests.faults.proxy import FaultProxy, fault_proxy
from tests.faults.test_faults import failed, is_told, recovered, refresher_of
from tests.git_client import Upstream
from tests.mirror_service import MirrorService, configuration, refs_of, serving


@asynccontextmanager
async def mirrored(proxy: FaultProxy, directory: Path, **more: Any) -> AsyncIterator[MirrorService]:
    """Run a service that has mirrored all there is."""
    file = configuration(proxy.as_forge, directory, **more)
    async with serving(file, proxy.as_forge) as service:
        await service.mirrored()
        yield service


async def fails(service: MirrorService, upstream: Upstream, reason: Trouble, says: str) -> None:
    """Assert that a push stays unseen, as it should, and that the log says why."""
    served = refs_of(service.mirror())
    before = upstream.oid()
    upstream.commit()
    with capture_logs() as logs:
        await service.announce(upstream, before=before)
        await failed(service)
        await is_told(service, Fault(stall_at_once, reason, says), logs)
    assert refs_of(service.mirror()) == served
    assert "Git-Mirror-Stale" in (await service.info_refs()).headers


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        ("expired", "certificate has expired.*renew it there"),
        ("self-signed", "certificate verify failed.*ca_file"),
        ("of another host", "IP address mismatch"),
    ],
)
async def test_a_certificate_that_is_not_good_is_refused_until_it_is(
    upstream: Upstream, forge: HttpBackend, tmp_path: Path, trouble: str, says: str
) -> None:
    authority = Authority.make(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    good, bad = authority.issue(tmp_path), authority.issue(tmp_path, days=-1)
    if trouble == "self-signed":
        bad = Authority.make(other).issue(other)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(bad)
    host = "127.0.0.2" if trouble == "of another host" else "127.0.0.1"
    if trouble == "of another host":
        context.load_cert_chain(good)
    async with fault_proxy(forge, host=host, tls=context) as proxy:
        trust = f"ca_file: {authority.file}"
        file = configuration(proxy.as_forge, tmp_path / "mirror", defaults=trust)
        with capture_logs() as logs:
            async with serving(file, proxy.as_forge) as service:
                await failed(service)
                fault = Fault(stall_at_once, Trouble.CERTIFICATE, says)
                await is_told(service, fault, logs)
                assert (await service.info_refs()).status == 503
                if trouble == "of another host":
                    return
                context.load_cert_chain(good)
                await recovered(service, upstream)
                context.load_cert_chain(bad)
                await fails(service, upstream, Trouble.CERTIFICATE, says)
                context.load_cert_chain(good)
                await recovered(service, upstream)


async def test_a_name_that_is_gone_is_passing_trouble(
    upstream: Upstream, forge: HttpBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fault_proxy(forge) as proxy:
        proxy.url = proxy.url.replace("127.0.0.1", "localhost")
        async with mirrored(proxy, tmp_path) as service:
            connector: Any = refresher_of(service)._remote._line.session.connector

            async def resolve(*_: object, **__: object) -> None:
                raise OSError(None, "Name or service not known")

            with monkeypatch.context() as patch:
                connector.clear_dns_cache()
                patch.setattr(connector._resolver, "resolve", resolve)
                await fails(service, upstream, Trouble.UNREACHABLE, "localhost can't be reached")
            await recovered(service, upstream)


@pytest.mark.parametrize("where", ["connect", "TLS"])
async def test_a_connection_that_is_not_made_is_given_up(
    upstream: Upstream, forge: HttpBackend, tmp_path: Path, where: str
) -> None:
    """A host that drops packets, and one that says nothing once it has accepted."""
    with socket.socket() as silent, socket.socket() as filling:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        filling.setblocking(False)
        if where == "connect":
            await asyncio.get_running_loop().sock_connect(filling, silent.getsockname())
        async with fault_proxy(forge) as proxy:
            faithful = proxy.url
            scheme = "https" if where == "TLS" else "http"
            proxy.url = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}"
            limits = "limits: {upstream_timeout: 300ms}"
            file = configuration(proxy.as_forge, tmp_path, sections=limits)
            with capture_logs() as logs:
                async with serving(file, proxy.as_forge) as service:
                    await failed(service)
                    fault = Fault(stall_at_once, Trouble.UNREACHABLE, "can't be reached")
                    await is_told(service, fault, logs)
                    assert (await service.info_refs()).status == 503
            assert faithful
