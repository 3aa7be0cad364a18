"""When a token ends: asked seldom, of the forge alone, and no trouble where it can't be told."""

from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from mirror.config import Forge
from mirror.upstream.credentials import BasicCredentials
from mirror.upstream.expiry import (
    ASKED_AGAIN_SECONDS,
    ASKED_EVERY_SECONDS,
    Expiries,
    github_expiry,
    gitlab_expiry,
)
from mirror.upstream.line import Line
from tests.github_server import Clock
from tests.upstream.conftest import AGENT
from tests.upstream.scripted import Scripted, scripted

END = 1_798_761_600.0  # 2027-01-01


async def told(_: web.Request) -> web.Response:
    headers = {"GitHub-Authentication-Token-Expiration": "2027-01-01 00:00:00 UTC"}
    return web.json_response({"expires_at": "2027-01-01"}, headers=headers)


class Looker:
    """Looks for the end of the token in a file."""

    def __init__(self, session: aiohttp.ClientSession, file: Path, server: Scripted) -> None:
        self.clock = Clock()
        self.file = file
        self.file.write_text("t0ken")
        self.server = server
        self.line = Line(session)
        self.expiries = Expiries(agent=AGENT, clock=self.clock)
        self.credentials = self.signed_in()

    def signed_in(self) -> BasicCredentials:
        credentials = BasicCredentials("x", self.file)
        credentials.standing.answered(200)
        return credentials

    async def look(
        self, forge: Forge | None, credentials: BasicCredentials | None = None
    ) -> float | None:
        own = credentials or self.credentials
        await self.expiries.look(self.line, own, forge=forge, upstream=self.server.repository_url)
        return own.standing.expires_at


@pytest.mark.parametrize(
    ("forge", "path"),
    [
        (Forge.GITHUB, "/api/v3/rate_limit"),
        (Forge.GITLAB, "/api/v4/personal_access_tokens/self"),
    ],
)
async def test_a_forge_is_asked_once_a_day_and_when_the_token_changes(
    session: aiohttp.ClientSession, tmp_path: Path, forge: Forge, path: str
) -> None:
    async with scripted(told) as server:
        looker = Looker(session, tmp_path / "token", server)
        assert await looker.look(forge) == END
        assert await looker.look(forge) == END
        assert [seen.path for seen in server.requests] == [path]
        assert server.requests[0].headers["Authorization"] == "Bearer t0ken"
        assert await looker.look(forge, looker.signed_in()) == END, "the same token elsewhere"
        assert len(server.requests) == 1
        looker.clock.now += ASKED_EVERY_SECONDS
        await looker.look(forge)
        assert len(server.requests) == 2
        looker.file.write_text("another t0ken")
        await looker.look(forge)
        assert len(server.requests) == 3


@pytest.mark.parametrize("forge", [None, Forge.GITEA, Forge.BITBUCKET])
async def test_other_forges_are_not_asked(
    session: aiohttp.ClientSession, tmp_path: Path, forge: Forge | None
) -> None:
    async with scripted(told) as server:
        assert await Looker(session, tmp_path / "token", server).look(forge) is None
        assert server.requests == []


async def test_a_token_that_the_upstream_has_not_taken_is_not_asked_about(
    session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    async with scripted(told) as server:
        looker = Looker(session, tmp_path / "token", server)
        looker.credentials.standing.answered(401)
        assert await looker.look(Forge.GITHUB) is None
        assert await looker.look(Forge.GITHUB, BasicCredentials("x", looker.file)) is None
        assert server.requests == []


@pytest.mark.parametrize("status", [200, 401, 403, 404, 500])
@pytest.mark.parametrize("forge", [Forge.GITHUB, Forge.GITLAB])
async def test_a_forge_that_does_not_tell_is_no_trouble_and_not_asked_again_the_same_day(
    session: aiohttp.ClientSession, tmp_path: Path, forge: Forge, status: int
) -> None:
    async def silent(_: web.Request) -> web.Response:
        return web.Response(status=status, text="[")

    async with scripted(silent) as server:
        looker = Looker(session, tmp_path / "token", server)
        assert await looker.look(forge) is None
        assert await looker.look(forge) is None
        assert len(server.requests) == 1
    looker.clock.now += ASKED_EVERY_SECONDS
    assert await looker.look(forge) is None, "nor one that is not there"
    assert looker.credentials.standing.failing_since is None
    port = int(server.url.rpartition(":")[2])
    async with scripted(told, port=port) as again:
        assert await looker.look(forge) is None
        assert again.requests == []
        looker.clock.now += ASKED_AGAIN_SECONDS
        assert await looker.look(forge) == END, "that is asked again within the hour"


async def test_a_password_that_is_no_token_and_a_file_that_is_gone_are_no_trouble(
    session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    async with scripted(told) as server:
        looker = Looker(session, tmp_path / "token", server)
        looker.file.write_bytes(b"two\nlines")
        assert await looker.look(Forge.GITHUB) is None
        looker.file.write_bytes(b"\xff")
        assert await looker.look(Forge.GITHUB) is None
        looker.file.unlink()
        assert await looker.look(Forge.GITHUB) is None
        assert server.requests == []


@pytest.mark.parametrize(
    ("written", "at"),
    [
        ("2027-01-01 00:00:00 UTC", END),
        ("2026-12-31 17:00:00 -0700", END),
        ("2027-01-01 02:00:00 +0200", END),
        ("", None),
        ("never", None),
        ("2027-01-01", None),
    ],
)
def test_githubs_header_is_read_with_its_zone(written: str, at: float | None) -> None:
    assert github_expiry({"GitHub-Authentication-Token-Expiration": written}, b"") == at
    assert github_expiry({}, b"") is None


@pytest.mark.parametrize(
    ("body", "at"),
    [
        (b'{"expires_at": "2027-01-01"}', END),
        (b'{"expires_at": null}', None),
        (b'{"expires_at": "soon"}', None),
        (b"{}", None),
        (b"[1]", None),
        (b"\xff", None),
        (b"[" * 100_000, None),
    ],
)
def test_gitlabs_answer_is_read_as_a_day(body: bytes, at: float | None) -> None:
    assert gitlab_expiry({}, body) == at
