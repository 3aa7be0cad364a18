"""What tests of the upstream's client share."""

import base64
import traceback
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest

from mirror.errors import UpstreamError
from mirror.upstream.connect import open_session
from mirror.upstream.credentials import BasicCredentials
from mirror.upstream.line import Line
from mirror.upstream.remote import Remote, RemoteLimits

AGENT = b"git-mirror/test"
SECRET = "s3cret-t0ken"
BASIC = base64.b64encode(f"ci:{SECRET}".encode()).decode()
ALL = [b"refs/"]

MakeRemote = Callable[..., Remote]


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with open_session() as opened:
        yield opened


@pytest.fixture
def credentials(tmp_path: Path) -> BasicCredentials:
    """The account ci with a password in a file."""
    file = tmp_path / "password"
    file.write_text(f"{SECRET}\n", encoding="utf-8")
    return BasicCredentials("ci", file)


@pytest.fixture
def make_remote(session: aiohttp.ClientSession) -> MakeRemote:
    def make(
        url: str,
        *,
        credentials: BasicCredentials | None = None,
        silence_seconds_max: float = 60.0,
        pack_bytes_max: int = 1 << 20,
    ) -> Remote:
        limits = RemoteLimits(silence_seconds_max, pack_bytes_max)
        return Remote(Line(session), url, credentials=credentials, limits=limits, agent=AGENT)

    return make


async def failure(remote: Remote) -> UpstreamError:
    """List the refs, which must fail; nothing that it says may hold a secret."""
    with pytest.raises(UpstreamError) as caught:
        await remote.list_refs(ALL)
    for word in (SECRET, BASIC):
        assert word not in "".join(traceback.format_exception(caught.value))
        assert word not in repr(caught.value)
    return caught.value
