"""The forge of the demo and of every end-to-end test, asked by the real git client."""

import asyncio
import contextlib
import gc
import os
import select
import tempfile
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import aiohttp
import pytest

from mirror.demo.cgi import HttpBackendProgram, parse_headers
from mirror.demo.forge import Faults, ForgeRequest, HttpBackend
from mirror.errors import LocalError
from mirror.wire import pktline
from tests.git_client import GitClient, GitFailed, Upstream


async def test_a_client_that_leaves_before_its_child_is_started_leaves_nothing_open(
    tmp_path: Path,
) -> None:
    program = HttpBackendProgram(tmp_path)
    await program.find()
    with tempfile.TemporaryFile() as body, tempfile.TemporaryFile() as errors:
        running = program.run({}, body, errors)
        entering = asyncio.create_task(running.__aenter__())
        await asyncio.sleep(0)  # it opens its sockets
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering
    gc.collect()  # which finds what is open, and pytest fails with its warning
    await program.close()
    assert program.running == frozenset()


@pytest.fixture
def url(forge: HttpBackend, upstream: Upstream) -> str:
    return forge.repository_url(upstream.name)


@pytest.mark.parametrize(
    ("version", "git_protocol", "operations"),
    [
        (0, "", ["info/refs", "fetch"]),
        (1, "version=1", ["info/refs", "fetch"]),
        (2, "version=2", ["info/refs", "ls-refs", "fetch"]),
    ],
)
async def test_a_clone_by_each_protocol_has_what_the_upstream_has(
    forge: HttpBackend,
    upstream: Upstream,
    url: str,
    tmp_path: Path,
    version: int,
    git_protocol: str,
    operations: list[str],
) -> None:
    upstream.commit()
    upstream.tag("v1")
    client = GitClient(tmp_path / "client", version)
    clone = await client.clone(url, "--mirror")
    await client.fsck(clone)
    assert await client.refs(clone) == upstream.refs()
    assert await client.default_branch(url) == "refs/heads/main"
    assert forge.operations[: len(operations)] == operations
    assert {request.git_protocol for request in forge.requests} == {git_protocol}


async def test_a_repository_answers_with_and_without_its_suffix(
    upstream: Upstream, url: str, git_client: GitClient
) -> None:
    expected = {"HEAD": upstream.oid(), "refs/heads/main": upstream.oid()}
    assert await git_client.ls_remote(url) == expected
    assert await git_client.ls_remote(url.removesuffix(".git")) == expected


async def test_an_unknown_repository_is_404(forge: HttpBackend, git_client: GitClient) -> None:
    with pytest.raises(GitFailed, match="not found"):
        await git_client.ls_remote(forge.repository_url("acme/nothing"))
    assert forge.requests[-1].status == 404
    assert "Not a git repository" in forge.requests[-1].stderr


async def test_answers_carry_the_headers_of_http_backend(url: str) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{url}/info/refs?service=git-upload-pack") as answer,
    ):
        names = list(answer.headers)
        assert names[:4] == ["Expires", "Pragma", "Cache-Control", "Content-Type"]
        assert answer.headers["Content-Type"] == "application/x-git-upload-pack-advertisement"


async def test_a_request_of_more_than_1_kb_arrives_gzipped(
    forge: HttpBackend, upstream: Upstream, url: str, git_client: GitClient
) -> None:
    tips = upstream.history(64)
    upstream.branches({f"b{number}": tip for number, tip in enumerate(tips)})
    clone = await git_client.clone(url, "--mirror")
    assert await git_client.refs(clone) == upstream.refs()
    request = forge.requests[-1]
    assert (request.operation, request.content_encoding) == ("fetch", "gzip")
    assert 0 < request.body_bytes < len(request.body)
    assert all(f"want {tip}".encode() in request.body for tip in tips)


async def test_a_request_over_the_post_buffer_arrives_in_chunks_after_a_probe(
    forge: HttpBackend, upstream: Upstream, url: str, tmp_path: Path
) -> None:
    tips = upstream.history(1500)
    upstream.branches({f"b{number}": tip for number, tip in enumerate(tips)})
    client = GitClient(tmp_path / "client", config={"http.postBuffer": "100000"})
    clone = await client.clone(url, "--mirror")
    assert await client.refs(clone) == upstream.refs()
    assert forge.operations == ["info/refs", "ls-refs", "probe", "fetch"]
    probe, fetch = forge.requests[-2:]
    assert (probe.git_protocol, fetch.git_protocol) == ("", "version=2")
    assert (fetch.content_length, fetch.content_encoding) == (None, "")
    assert fetch.body_bytes > 1500 * len(f"0032want {tips[0]}\n")


async def test_the_account_is_asked_for_and_may_push(
    upstream: Upstream, upstream_root: Path, git_client: GitClient
) -> None:
    upstream.git("config", "--unset", "http.receivepack")
    async with HttpBackend(upstream_root, basic_auth=("ci", "s3cret")) as forge:
        url = forge.repository_url(upstream.name)
        with pytest.raises(GitFailed, match="could not read Username"):
            await git_client.clone(url)
        known = url.replace("http://", "http://ci:s3cret@")
        clone = await git_client.clone(known)
        assert [(r.authorized, r.status) for r in forge.requests[1:4]] == [
            (False, 401),
            (True, 200),
            (True, 200),
        ]
        commit = await git_client.commit_file(clone, "a.txt", "a", "Add a")
        await git_client.run("push", "--quiet", "origin", "HEAD", cwd=clone)
        assert forge.operations[-1] == "push"
    assert upstream.oid("main") == commit


async def test_a_wrong_password_is_refused(
    upstream: Upstream, upstream_root: Path, git_client: GitClient
) -> None:
    async with HttpBackend(upstream_root, basic_auth=("ci", "s3cret")) as forge:
        url = forge.repository_url(upstream.name).replace("http://", "http://ci:wrong@")
        with pytest.raises(GitFailed, match="Authentication failed"):
            await git_client.ls_remote(url)
        assert {request.status for request in forge.requests} == {401}


async def test_a_push_needs_no_account_where_the_repository_takes_it_from_anybody(
    upstream: Upstream, url: str, git_client: GitClient
) -> None:
    clone = await git_client.clone(url)
    commit = await git_client.commit_file(clone, "a.txt", "a", "Add a")
    await git_client.run("push", "--quiet", "origin", "HEAD:refs/heads/new", cwd=clone)
    assert upstream.oid("new") == commit


@pytest.mark.parametrize("status", [401, 403, 404, 429, 503])
async def test_it_answers_with_the_status_it_was_told(
    forge: HttpBackend, url: str, status: int
) -> None:
    forge.faults = Faults(status=status, retry_after="7")
    async with aiohttp.ClientSession() as session, session.get(f"{url}/info/refs") as answer:
        assert answer.status == status
        assert answer.headers["Retry-After"] == "7"
        assert ("WWW-Authenticate" in answer.headers) == (status == 401)


async def test_a_fault_can_be_for_some_requests_only(
    forge: HttpBackend, url: str, git_client: GitClient
) -> None:
    forge.faults = Faults(status=503, only=ForgeRequest.is_fetch)
    await git_client.ls_remote(url)
    with pytest.raises(GitFailed, match="503"):
        await git_client.clone(url)


async def test_a_renamed_repository_redirects_to_its_new_name(
    forge: HttpBackend, upstream: Upstream, git_client: GitClient
) -> None:
    forge.faults.redirect = ("acme/old", upstream.name)
    clone = await git_client.clone(forge.repository_url("acme/old"))
    assert await git_client.rev_parse(clone, "HEAD") == upstream.oid()
    assert [request.status for request in forge.requests] == [301, 200, 200, 200]


async def test_a_stalled_request_is_answered_once_released(
    forge: HttpBackend, upstream: Upstream, url: str, git_client: GitClient
) -> None:
    forge.faults.stall = asyncio.Event()
    listing = asyncio.create_task(git_client.ls_remote(url))
    await forge.wait_for_requests(1, "info/refs")
    assert not listing.done()
    assert forge.requests[0].status == 0
    forge.faults.stall.set()
    assert (await listing)["HEAD"] == upstream.oid()


async def test_an_answer_can_stall_halfway(forge: HttpBackend, url: str) -> None:
    release = asyncio.Event()
    async with aiohttp.ClientSession() as session:
        whole = b"".join([chunk async for chunk in _ls_refs(session, url)])
        forge.faults = Faults(stall=release, stall_after_bytes=50)
        received = b""
        async for chunk in _ls_refs(session, url):
            received += chunk
            if len(received) == 50:
                release.set()  # until now there was no more to read
        assert received == whole


async def test_a_pack_that_is_cut_fails_the_clone(
    forge: HttpBackend, url: str, git_client: GitClient
) -> None:
    forge.faults = Faults(cut_after_bytes=200, only=ForgeRequest.is_fetch)
    with pytest.raises(GitFailed, match=r"early EOF|unexpected disconnect"):
        await git_client.clone(url)


@pytest.mark.parametrize("cut", [0, 1, 50])
async def test_an_answer_is_cut_after_so_many_bytes(forge: HttpBackend, url: str, cut: int) -> None:
    async with aiohttp.ClientSession() as session:
        whole = b"".join([chunk async for chunk in _ls_refs(session, url)])
        assert len(whole) > cut
        forge.faults.cut_after_bytes = cut
        received = b""
        with pytest.raises(aiohttp.ClientError):
            async for chunk in _ls_refs(session, url):
                received += chunk
        assert received == whole[:cut]


async def test_protocol_v0_can_be_forced(
    forge: HttpBackend, upstream: Upstream, url: str, git_client: GitClient
) -> None:
    forge.faults.force_protocol_v0 = True
    clone = await git_client.clone(url)
    assert await git_client.rev_parse(clone, "HEAD") == upstream.oid()
    assert forge.operations == ["info/refs", "fetch"]
    assert forge.requests[0].git_protocol == "version=2"


async def test_the_content_type_can_be_wrong(
    forge: HttpBackend, url: str, git_client: GitClient
) -> None:
    forge.faults.content_type = "text/html"
    with pytest.raises(GitFailed):
        await git_client.clone(url)


async def test_a_hook_sees_each_request_before_its_answer(
    forge: HttpBackend, url: str, git_client: GitClient
) -> None:
    seen: list[tuple[str, int]] = []

    async def look(request: ForgeRequest) -> None:
        seen.append((request.operation, request.status))
        forge.faults.status = 503 if request.operation == "ls-refs" else None

    forge.on_request = look
    with pytest.raises(GitFailed, match="503"):
        await git_client.ls_remote(url)
    assert seen == [("info/refs", 0), ("ls-refs", 0)]


async def test_a_client_that_hangs_up_leaves_no_child(
    forge: HttpBackend, upstream: Upstream, url: str, git_client: GitClient
) -> None:
    clone = await git_client.clone(url)
    with _endless_push(upstream) as begun:
        pushing = asyncio.create_task(git_client.run("push", url, "HEAD:new", cwd=clone))
        child = await begun()
        assert forge.children
        pushing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pushing
        await forge.close()
        assert not forge.children
        assert await _ends(child)


async def test_close_ends_children_and_what_they_started(
    upstream: Upstream, upstream_root: Path, git_client: GitClient
) -> None:
    with _endless_push(upstream) as begun:
        async with HttpBackend(upstream_root) as forge:
            url = forge.repository_url(upstream.name)
            clone = await git_client.clone(url)
            pushing = asyncio.create_task(git_client.run("push", url, "HEAD:new", cwd=clone))
            child = await begun()
            assert forge.children
        assert not forge.children
        assert await _ends(child)
        with pytest.raises(GitFailed):
            await pushing


async def test_a_child_that_ignores_sigterm_is_killed(
    upstream_root: Path, url: str, forge: HttpBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    stubborn = upstream_root / "stubborn"
    stubborn.write_text("#!/bin/sh\ntrap '' TERM\nprintf '\\r\\n\\r\\n'\nexec tail -f /dev/null\n")
    stubborn.chmod(0o755)
    monkeypatch.setattr(forge._program, "_program", str(stubborn))
    monkeypatch.setattr("mirror.demo.cgi.EXIT_SECONDS_MAX", 0.1)
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        assert answer.status == 200
        (child,) = forge.children
        await forge.close()
    assert await _ends(child)


async def test_a_program_that_is_no_cgi_is_502(
    url: str, forge: HttpBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forge._program, "_program", "/bin/true")
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        assert answer.status == 502
        assert forge.requests[0].status == 502


async def test_close_does_not_wait_for_a_stalled_request(
    upstream: Upstream, upstream_root: Path, git_client: GitClient
) -> None:
    async with HttpBackend(upstream_root) as forge:
        forge.faults.stall = asyncio.Event()
        listing = asyncio.create_task(git_client.ls_remote(forge.repository_url(upstream.name)))
        await forge.wait_for_requests(1)
    with pytest.raises(GitFailed):
        await listing


async def test_close_drops_idle_connections(upstream: Upstream, upstream_root: Path) -> None:
    async with aiohttp.ClientSession() as session:
        async with HttpBackend(upstream_root) as forge:
            url = f"{forge.repository_url(upstream.name)}/info/refs"
            async with session.get(url) as answer:
                await answer.read()
        with pytest.raises(aiohttp.ClientError):
            await session.get(url)


async def test_a_port_in_use_is_an_error_that_leaves_nothing_behind(
    forge: HttpBackend, upstream_root: Path
) -> None:
    with pytest.raises(OSError, match="in use"):
        async with HttpBackend(upstream_root, port=forge.port):
            pass


async def test_many_clients_at_once_are_all_served(
    forge: HttpBackend, upstream: Upstream, url: str, git_client: GitClient
) -> None:
    upstream.history(200)
    clones = await asyncio.gather(*(git_client.clone(url) for _ in range(8)))
    tips = {await git_client.rev_parse(clone, "HEAD") for clone in clones}
    assert tips == {upstream.oid()}
    assert len(forge.requests) == 24


async def test_without_git_it_says_what_to_install(
    upstream_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(upstream_root))
    forge = HttpBackend(upstream_root)
    with pytest.raises(LocalError, match="apt-get install git"):
        await forge.start()
    await forge.close()


def test_cgi_headers_without_a_status_mean_200() -> None:
    fields = [("Expires", "never"), ("Content-Type", "text/plain")]
    head = b"Expires: never\r\nContent-Type: text/plain\r\n\r\n"
    assert parse_headers(head) == (200, "OK", fields)
    assert parse_headers(b"Status: 404 Not Found\r\n" + head) == (404, "Not Found", fields)


def test_a_record_tells_operations_apart() -> None:
    def operation(path: str, body: bytes = b"") -> str:
        record = ForgeRequest("POST", path, "", "version=2", authorized=False, body=body)
        return record.operation

    assert operation("/a.git/git-upload-pack", b"0014command=ls-refs\n") == "ls-refs"
    assert operation("/a.git/git-upload-pack", b"0032want ") == "fetch"
    assert operation("/a.git/git-upload-pack", b"0000") == "probe"
    assert operation("/a.git/git-receive-pack", b"0000") == "probe"
    assert operation("/a.git/git-receive-pack", b"00a0") == "push"
    assert operation("/a.git/HEAD") == "/a.git/HEAD"


async def test_a_gzip_body_that_is_none_is_left_to_git(forge: HttpBackend, url: str) -> None:
    headers = {
        "Content-Type": "application/x-git-upload-pack-request",
        "Content-Encoding": "gzip",
    }
    broken = zlib.compress(b"0000")
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/git-upload-pack", data=broken, headers=headers) as answer,
    ):
        await answer.read()
    assert forge.requests[0].body == broken


async def _ls_refs(session: aiohttp.ClientSession, url: str) -> AsyncIterator[bytes]:
    body = pktline.encode(b"command=ls-refs\n") + pktline.DELIM_PKT + pktline.FLUSH_PKT
    headers = {"Content-Type": "application/x-git-upload-pack-request", "Git-Protocol": "version=2"}
    async with session.post(f"{url}/git-upload-pack", data=body, headers=headers) as answer:
        async for chunk in answer.content.iter_any():
            yield chunk


@contextlib.contextmanager
def _endless_push(upstream: Upstream) -> Iterator[Callable[[], Awaitable[int]]]:
    """Have pushes start a program that never ends by itself; give a wait for its process id."""
    fifo = upstream.path / "begun"
    os.mkfifo(fifo)
    hook = upstream.path / "hooks" / "pre-receive"
    hook.parent.mkdir()
    hook.write_text(f"#!/bin/sh\necho $$ > {fifo}\nexec tail -f /dev/null\n")
    hook.chmod(0o755)
    descriptor = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)

    async def begun() -> int:
        loop = asyncio.get_running_loop()
        written = asyncio.Event()
        loop.add_reader(descriptor, written.set)
        async with asyncio.timeout(60):
            await written.wait()
        loop.remove_reader(descriptor)
        return int(os.read(descriptor, 100))

    try:
        yield begun
    finally:
        os.close(descriptor)


async def _ends(pid: int) -> bool:
    """Wait for a process to end; one that waits for its parent to reap it has ended."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        readable, _, _ = await asyncio.to_thread(select.select, [process], [], [], 20)
        return bool(readable)
    finally:
        os.close(process)
