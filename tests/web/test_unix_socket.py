"""A Unix socket beside the port, for a proxy on this machine."""

import socket
import stat
from pathlib import Path

import aiohttp
import pytest

from mirror.demo.forge import HttpBackend
from tests.git_client import Upstream
from tests.mirror_service import mirroring

POLL = "http://mirror/acme/gitops-repo/info/refs?service=git-upload-pack"


@pytest.mark.parametrize("workers", [1, 2])
async def test_readers_come_in_by_the_socket_and_its_proxy_is_believed(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, workers: int
) -> None:
    path = tmp_path / "http.sock"
    with socket.socket(socket.AF_UNIX) as left_by_a_crash:
        left_by_a_crash.bind(str(path))
    async with mirroring(
        forge,
        tmp_path / "m",
        names=[upstream.name],
        workers=workers,
        server=f"unix_socket: {path}",
        defaults="access: [readers]",
    ) as mirror:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        headers = {"Authorization": "Bearer guess", "X-Forwarded-For": "198.51.100.7"}
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session:
            for _ in range(30 * workers):
                await _text(session, POLL, headers)
            assert "from 198.51.100.7; wait" in await _text(session, POLL, headers)
            others = {**headers, "X-Forwarded-For": "198.51.100.8"}
            assert "are not good here" in await _text(session, POLL, others)
            proxied = {"X-Forwarded-For": "198.51.100.7"}
            assert "not for 198.51.100.7" in await _text(session, "http://mirror/metrics", proxied)
        assert (await mirror.info_refs()).status == 401
    assert not path.exists()


async def _text(session: aiohttp.ClientSession, url: str, headers: dict[str, str]) -> str:
    async with session.get(url, headers=headers) as answer:
        return await answer.text()


async def test_polls_by_the_socket_are_answered_again_and_again(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    path = tmp_path / "http.sock"
    async with (
        mirroring(
            forge, tmp_path / "m", names=[upstream.name], server=f"unix_socket: {path}"
        ) as mirror,
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session,
    ):
        for _ in range(2):
            for _ in range(3):
                assert upstream.oid() in await _text(session, POLL, {})
            upstream.commit()
            await mirror.announce(upstream)
