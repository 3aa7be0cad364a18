"""Listing an upstream's refs: every protocol that git's own server speaks, in few round trips."""

import asyncio
import os
import subprocess
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from mirror.config import LimitSettings, PasswordSettings, RepositorySettings
from mirror.demo.forge import Faults, HttpBackend
from mirror.errors import UpstreamRefused
from mirror.upstream.connect import open_keyring, open_session, remote_for
from mirror.upstream.credentials import BasicCredentials
from mirror.upstream.line import Line
from mirror.upstream.remote import WARMED_EVERY_SECONDS, Remote, RemoteLimits
from mirror.wire.client import Listing
from mirror.wire.pktline import FLUSH_PKT, encode
from tests.git_client import Upstream
from tests.upstream.conftest import AGENT, ALL, SECRET, MakeRemote
from tests.upstream.scripted import (
    MAIN,
    OID,
    a_v2_server,
    advertisement,
    result,
    scripted,
    v0_listing,
    v2_capabilities,
    v2_listing,
)


def by_name(listing: Listing) -> dict[str, str]:
    return {ref.name.decode(): ref.oid.decode() for ref in listing.refs}


def peeled(listing: Listing) -> dict[str, str]:
    return {ref.name.decode(): ref.peeled.decode() for ref in listing.refs if ref.peeled}


@pytest.fixture(params=["v2", "v0"])
def url(request: pytest.FixtureRequest, forge: HttpBackend, upstream: Upstream) -> str:
    forge.faults = Faults(force_protocol_v0=request.param == "v0")
    return forge.repository_url(upstream.name)


async def test_refs_tags_and_head_are_listed_as_they_are(
    url: str, upstream: Upstream, make_remote: MakeRemote
) -> None:
    upstream.commit("feature/a")
    upstream.tag("v1")
    upstream.tag("nested", "v1")
    upstream.tag("light", annotated=False)
    listing = await make_remote(url).list_refs(ALL)
    assert by_name(listing) == upstream.refs()
    assert peeled(listing) == {
        "refs/tags/v1": upstream.oid(),
        "refs/tags/nested": upstream.oid(),
    }
    assert listing.head == upstream.oid().encode()
    assert listing.head_target == b"refs/heads/main"
    assert not listing.shallow


async def test_a_detached_head_has_an_id_and_no_branch(
    url: str, upstream: Upstream, make_remote: MakeRemote
) -> None:
    old = upstream.oid()
    upstream.commit()
    upstream.git("update-ref", "--no-deref", "HEAD", old)
    listing = await make_remote(url).list_refs(ALL)
    assert (listing.head, listing.head_target) == (old.encode(), None)


async def test_a_head_whose_branch_is_not_there_has_no_id(
    url: str, upstream: Upstream, forge: HttpBackend, make_remote: MakeRemote
) -> None:
    upstream.set_head("not-yet")
    listing = await make_remote(url).list_refs(ALL)
    assert listing.head is None
    # v0 has no way to tell of it.
    told = None if forge.faults.force_protocol_v0 else b"refs/heads/not-yet"
    assert listing.head_target == told
    assert by_name(listing) == upstream.refs()


async def test_an_empty_upstream_lists_nothing(
    upstream_root: Path, forge: HttpBackend, url: str, make_remote: MakeRemote
) -> None:
    empty = Upstream(upstream_root, "acme/empty", branch="trunk")
    listing = await make_remote(forge.repository_url(empty.name)).list_refs(ALL)
    assert (len(listing.refs), listing.head) == (0, None)
    told = None if forge.faults.force_protocol_v0 else b"refs/heads/trunk"
    assert listing.head_target == told


async def test_only_what_was_asked_for_is_sent_by_v2(
    forge: HttpBackend, upstream: Upstream, make_remote: MakeRemote
) -> None:
    upstream.branches({"refs/pull/1/head": upstream.oid(), "release/1": upstream.oid()})
    remote = make_remote(forge.repository_url(upstream.name))
    listing = await remote.list_refs([b"refs/heads/release/"])
    assert by_name(listing) == {"refs/heads/release/1": upstream.oid()}
    assert listing.head_target == b"refs/heads/main", "HEAD is always asked for"


async def test_a_second_look_is_one_round_trip(
    url: str, upstream: Upstream, forge: HttpBackend, make_remote: MakeRemote
) -> None:
    remote = make_remote(url)
    await remote.list_refs(ALL)
    first = ["info/refs"] if forge.faults.force_protocol_v0 else ["info/refs", "ls-refs"]
    assert forge.operations == first
    new = upstream.commit()
    listing = await remote.list_refs(ALL)
    assert by_name(listing)["refs/heads/main"] == new
    assert forge.operations == [*first, first[-1]]


async def test_after_forgetting_it_starts_from_the_beginning(
    forge: HttpBackend, upstream: Upstream, make_remote: MakeRemote
) -> None:
    remote = make_remote(forge.repository_url(upstream.name))
    await remote.list_refs(ALL)
    remote.forget()
    await remote.list_refs(ALL)
    assert forge.operations == ["info/refs", "ls-refs"] * 2


async def test_credentials_are_sent_with_the_very_first_request(
    upstream: Upstream,
    upstream_root: Path,
    make_remote: MakeRemote,
    credentials: BasicCredentials,
) -> None:
    async with HttpBackend(upstream_root, basic_auth=("ci", SECRET)) as forge:
        remote = make_remote(forge.repository_url(upstream.name), credentials=credentials)
        listing = await remote.list_refs(ALL)
    assert by_name(listing) == upstream.refs()
    assert [(one.operation, one.authorized, one.status) for one in forge.requests] == [
        ("info/refs", True, 200),
        ("ls-refs", True, 200),
    ]


async def test_the_configuration_of_a_repository_makes_its_client(
    upstream: Upstream, upstream_root: Path, tmp_path: Path
) -> None:
    password_file = tmp_path / "token"
    password_file.write_text(SECRET, encoding="utf-8")
    async with (
        HttpBackend(upstream_root, basic_auth=("x-access-token", SECRET)) as forge,
        open_session() as session,
        open_keyring(session, agent=AGENT) as keyring,
    ):
        settings = RepositorySettings(
            name="acme/gitops-repo",
            upstream=forge.repository_url(upstream.name),
            credentials=PasswordSettings(username="x-access-token", password_file=password_file),
        )
        remote = remote_for(session, keyring, settings, LimitSettings(), agent=AGENT)
        assert by_name(await remote.list_refs(ALL)) == upstream.refs()
        assert SECRET not in repr(remote)
        anonymous = RepositorySettings(name="acme/gitops-repo", upstream=settings.upstream)
        with pytest.raises(UpstreamRefused, match="401"):
            await remote_for(session, keyring, anonymous, LimitSettings(), agent=AGENT).list_refs(
                ALL
            )


async def test_a_v1_upstream_is_understood(upstream: Upstream, make_remote: MakeRemote) -> None:
    upstream.tag("v1")
    completed = await asyncio.to_thread(
        subprocess.run,
        ["git", "upload-pack", "--stateless-rpc", "--http-backend-info-refs", str(upstream.path)],
        env={**os.environ, "GIT_PROTOCOL": "version=1"},
        capture_output=True,
        check=True,
    )
    said = completed.stdout
    assert b"version 1" in said

    async def answer(_: web.Request) -> web.StreamResponse:
        return advertisement(encode(b"# service=git-upload-pack\n") + FLUSH_PKT + said)

    async with scripted(answer) as server:
        listing = await make_remote(server.repository_url).list_refs(ALL)
    assert by_name(listing) == upstream.refs()
    assert listing.head_target == b"refs/heads/main"
    assert peeled(listing) == {"refs/tags/v1": upstream.oid()}


@pytest.mark.parametrize(
    ("names", "guess"),
    [
        ([b"refs/heads/main", b"refs/heads/master", b"refs/heads/zoo"], b"refs/heads/main"),
        ([b"refs/heads/apple", b"refs/heads/master"], b"refs/heads/master"),
        ([b"refs/heads/trunk", b"refs/heads/zoo"], b"refs/heads/trunk"),
        ([b"refs/tags/v1"], None),
    ],
)
async def test_a_server_too_old_to_tell_the_default_branch_has_it_guessed(
    make_remote: MakeRemote, names: list[bytes], guess: bytes | None
) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        lines = [OID + b" HEAD", *(OID + b" " + name for name in names)]
        return advertisement(v0_listing(lines, b"multi_ack thin-pack"))

    async with scripted(answer) as server:
        listing = await make_remote(server.repository_url).list_refs(ALL)
    assert listing.head_target == guess
    assert listing.head == OID


async def test_an_unborn_head_is_asked_for_only_where_it_is_offered(
    make_remote: MakeRemote,
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            return advertisement(
                v2_capabilities().replace(b"0013ls-refs=unborn\n", b"000cls-refs\n")
            )
        return result(v2_listing(MAIN))

    async with scripted(answer) as server:
        await make_remote(server.repository_url).list_refs(ALL)
    assert b"unborn" not in server.requests[1].body
    assert b"symrefs" in server.requests[1].body


async def test_what_is_sent_names_us_and_the_protocol(make_remote: MakeRemote) -> None:
    async with scripted(a_v2_server()) as server:
        await make_remote(server.repository_url).list_refs(ALL)
    assert server.asked == ["GET refs", "POST git-upload-pack"]
    for seen in server.requests:
        assert seen.headers["Git-Protocol"] == "version=2"
        assert seen.headers["User-Agent"] == "git/git-mirror/test"
        assert "Authorization" not in seen.headers
        assert "Cookie" not in seen.headers
    post = server.requests[1]
    assert post.headers["Content-Type"] == "application/x-git-upload-pack-request"
    assert post.headers["Accept"] == "application/x-git-upload-pack-result"
    assert "Content-Encoding" not in post.headers


async def test_a_compressed_answer_is_read(make_remote: MakeRemote) -> None:
    lines = [b"%040x refs/heads/b%d" % (number, number) for number in range(500)]

    async def answer(request: web.Request) -> web.StreamResponse:
        healthy = await a_v2_server(v2_listing(*lines))(request)
        healthy.enable_compression(web.ContentCoding.gzip)
        return healthy

    async with scripted(answer) as server:
        listing = await make_remote(server.repository_url).list_refs(ALL)
    assert len(listing.refs) == 500


@pytest.mark.parametrize("is_v0", [False, True])
async def test_an_answer_that_was_seen_before_is_no_news(
    forge: HttpBackend, upstream: Upstream, make_remote: MakeRemote, is_v0: bool
) -> None:
    """Of many refs too, which are worked on in a thread."""
    forge.faults = Faults(force_protocol_v0=is_v0)
    upstream.branches(
        dict.fromkeys((f"topic/{number:04}" for number in range(2000)), upstream.oid())
    )
    remote = make_remote(forge.repository_url(upstream.name))
    first = await remote.list_refs(ALL)
    assert by_name(first) == upstream.refs()
    assert await remote.list_news(ALL, seen=first.digest) is None
    upstream.force("topic/0007", upstream.commit())
    news = await remote.list_news(ALL, seen=first.digest)
    assert news is not None
    assert by_name(news) == upstream.refs()
    assert await remote.list_news(ALL, seen=news.digest) is None


async def test_a_second_connection_is_asked_for_now_and_then(
    forge: HttpBackend, upstream: Upstream, session: aiohttp.ClientSession
) -> None:
    now = 0.0
    remote = Remote(
        Line(session),
        forge.repository_url(upstream.name),
        credentials=None,
        limits=RemoteLimits(20.0, 1 << 20),
        agent=AGENT,
        clock=lambda: now,
    )
    await remote.warm()
    assert forge.operations == [], "nothing is known of it yet"
    await remote.list_refs(ALL)
    forge.requests.clear()
    await remote.warm()
    await remote.warm()
    assert forge.operations == ["info/refs"]
    now += WARMED_EVERY_SECONDS
    forge.faults = Faults(status=500)
    await remote.warm()
    assert forge.operations == ["info/refs"] * 2, "and what fails is no trouble"
