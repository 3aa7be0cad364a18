"""The real git client pushes through the mirror, with the upstream's own word on it."""

import asyncio
import os
import re
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import structlog

from mirror.demo.forge import HttpBackend
from mirror.web import push
from tests.git_client import GIT_SECONDS_MAX, GitClient, Upstream
from tests.mirror_service import (
    NAME,
    WAIT_SECONDS_MAX,
    MirrorService,
    git_protocol,
    mirroring,
)

USER, PASSWORD = "deployer", "the password of who pushes"


@pytest.fixture
async def forge(upstream_root: Path) -> AsyncIterator[HttpBackend]:
    """A forge where one has to sign in."""
    async with HttpBackend(upstream_root, basic_auth=(USER, PASSWORD)) as running:
        yield running


in_this_process = pytest.mark.parametrize("workers", [1], indirect=True, ids=["workers-1"])
"""For tests that look at the process that serves, and those that it makes no difference to."""


@pytest.fixture(params=[1, 2], ids=lambda count: f"workers-{count}")
def workers(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def engine() -> str:
    """It makes no difference to a push."""
    return "git"


@pytest.fixture
async def mirror(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, workers: int
) -> AsyncIterator[MirrorService]:
    """A mirror that passes pushes on; it signs in with the same account, for reading."""
    place = tmp_path / "mirror"
    place.mkdir()
    (place / "token").write_text(PASSWORD)
    (place / "token").chmod(0o600)
    credentials = f"credentials: {{username: {USER}, password_file: token}}"
    async with mirroring(
        forge,
        place,
        names=[upstream.name],
        workers=workers,
        repository=f"push: proxy\n{credentials}",
        sections="limits: {push_bytes_max: 300MiB}",
    ) as own:
        forge.requests.clear()
        yield own
        await GitClient(tmp_path).fsck(own.mirror(upstream.name).path)


@pytest.fixture
def pusher(tmp_path: Path) -> GitClient:
    """A client that knows the password: it is asked for it by the upstream, through the mirror."""
    helper = f"!f() {{ echo username={USER}; echo 'password={PASSWORD}'; }}; f"
    return GitClient(tmp_path / "pusher", config={"credential.helper": helper})


@pytest.fixture
def through(mirror: MirrorService, upstream: Upstream) -> str:
    return mirror.url(upstream.name)


def install_hook(upstream: Upstream, script: str) -> None:
    hook = upstream.path / "hooks" / "pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\n{script}\n")
    hook.chmod(hook.stat().st_mode | stat.S_IXUSR)


async def test_what_was_pushed_is_there_at_the_next_fetch(
    mirror: MirrorService, upstream: Upstream, pusher: GitClient, through: str
) -> None:
    clone, other = await pusher.clone(through), await pusher.clone(through)
    for number in range(5):
        commit = await pusher.commit_file(clone, "a.txt", f"{number}\n", f"Change {number}")
        await pusher.run("push", "--quiet", "origin", "main", cwd=clone)
        listed = await asyncio.gather(*(pusher.ls_remote(through) for _ in range(4)))
        assert [refs["refs/heads/main"] for refs in listed] == [commit] * 4
        assert upstream.oid("main") == commit
        await pusher.fetch(other)
        assert await pusher.rev_parse(other, "origin/main") == commit
    assert await mirror.metric("git_mirror_pushes_total", outcome="accepted") == 5


async def test_branches_and_tags_come_and_go(
    mirror: MirrorService, upstream: Upstream, pusher: GitClient, through: str
) -> None:
    clone = await pusher.clone(through)
    await pusher.run("tag", "-a", "-m", "One", "v1", cwd=clone)
    await pusher.run("push", "-q", "origin", "HEAD:refs/heads/new", "v1", cwd=clone)
    assert await pusher.ls_remote(through, "--refs") == upstream.refs()
    assert {"refs/heads/new", "refs/tags/v1"} <= upstream.refs().keys()
    await pusher.run("push", "-q", "origin", ":new", ":v1", cwd=clone)
    left = await pusher.ls_remote(through)
    assert not {"refs/heads/new", "refs/tags/v1"} & left.keys()
    assert upstream.refs().keys() == {"refs/heads/main"}


@in_this_process
async def test_what_the_upstream_rejects_the_client_is_told_in_its_words(
    mirror: MirrorService, upstream: Upstream, pusher: GitClient, through: str
) -> None:
    clone = await pusher.clone(through)
    before = upstream.commit()  # the clone is behind now, and so is the mirror
    await pusher.commit_file(clone, "a.txt", "a", "Mine")
    done = await pusher.run("push", "origin", "main", cwd=clone, check=False)
    assert done.returncode != 0
    assert re.search(r"\[(remote )?rejected\]|fetch first|non-fast-forward", done.stderr)
    assert upstream.oid("main") == before

    install_hook(upstream, "echo 'ticket number, please' >&2; exit 1")
    done = await pusher.run("push", "origin", "HEAD:refs/heads/x", cwd=clone, check=False)
    assert done.returncode != 0
    assert "remote: ticket number, please" in done.stderr
    assert "pre-receive hook declined" in done.stderr
    assert await mirror.metric("git_mirror_pushes_total", outcome="rejected") == 1


async def test_who_is_turned_away_finds_what_somebody_pushed_to_the_upstream_itself(
    mirror: MirrorService, upstream: Upstream, pusher: GitClient, through: str
) -> None:
    clone = await pusher.clone(through)
    await pusher.commit_file(clone, "a.txt", "a", "Mine")
    theirs = upstream.commit()  # no webhook tells of it, and nothing is polled
    done = await pusher.run("push", "origin", "main", cwd=clone, check=False)
    assert "fetch first" in done.stderr
    await pusher.run("pull", "--rebase", "--quiet", "origin", "main", cwd=clone)
    assert await pusher.rev_parse(clone, "HEAD~1") == theirs
    await pusher.run("push", "origin", "main", cwd=clone)
    assert await pusher.ls_remote(through, "--refs") == upstream.refs()


async def test_where_the_upstream_has_no_news_no_reader_is_held_for_a_push(
    mirror: MirrorService, upstream: Upstream, pusher: GitClient, through: str
) -> None:
    clone = await pusher.clone(through)
    upstream.branches({"refs/pull/1/head": upstream.oid()})  # which is not mirrored
    await pusher.run("push", "--dry-run", "origin", "HEAD:refs/heads/new", cwd=clone)
    assert mirror.mirror().last.announced_at is None


async def test_of_a_push_that_is_rejected_in_part_the_other_part_is_there(
    mirror: MirrorService, upstream: Upstream, pusher: GitClient, through: str
) -> None:
    clone = await pusher.clone(through)
    upstream.config("receive.denyDeletes", "true")
    upstream.branches({"old": upstream.oid()})
    await pusher.commit_file(clone, "a.txt", "a", "Mine")
    done = await pusher.run("push", "origin", "main", ":old", cwd=clone, check=False)
    assert done.returncode != 0
    assert "deletion prohibited" in done.stderr
    assert await pusher.ls_remote(through, "--refs") == upstream.refs()


async def test_the_clients_own_credentials_are_sent_and_never_the_mirrors(
    mirror: MirrorService,
    forge: HttpBackend,
    upstream: Upstream,
    git_client: GitClient,
    pusher: GitClient,
    through: str,
) -> None:
    clone = await git_client.clone(through)
    await git_client.commit_file(clone, "a.txt", "a", "Mine")
    done = await git_client.run("push", "origin", "main", cwd=clone, check=False)
    assert done.returncode != 0
    assert "could not read Username" in done.stderr  # asked by the forge's 401
    own = [one for one in forge.requests if "receive-pack" in one.query + one.path]
    assert [(one.operation, one.authorized, one.status) for one in own] == [
        ("info/refs", False, 401)
    ]
    forge.requests.clear()
    await pusher.run("push", "-q", "origin", "main", cwd=clone)
    own = [one for one in forge.requests if "receive-pack" in one.query + one.path]
    assert [(one.operation, one.authorized, one.status) for one in own] == [
        ("info/refs", False, 401),
        ("info/refs", True, 200),
        ("push", True, 200),
    ]


@in_this_process
async def test_a_token_of_the_mirrors_own_is_not_handed_to_the_upstream(
    mirror: MirrorService, forge: HttpBackend
) -> None:
    token = "gmt_" + "A" * 43
    for header in (f"Bearer {token}", aiohttp.encode_basic_auth("any", token)):
        answer = await mirror.get(
            f"/{NAME}/info/refs?service=git-receive-pack", headers={"Authorization": header}
        )
        assert answer.status == 401
        assert "push with credentials of the upstream" in answer.text
    assert forge.requests == []


@in_this_process
async def test_a_push_of_64_megabytes_streams_through(
    upstream: Upstream, pusher: GitClient, through: str
) -> None:
    clone = await pusher.clone(through)
    (clone / "big.bin").write_bytes(os.urandom(64 << 20))
    fast = ["-c", "core.compression=0", "-c", "core.bigFileThreshold=1m"]
    await pusher.run(*fast, "add", ".", cwd=clone)
    await pusher.run(*fast, "commit", "-q", "-m", "Big", cwd=clone)
    upstream.config("core.bigFileThreshold", "1m")
    before = _resident_bytes()
    peak = asyncio.create_task(_peak_resident_bytes())
    await pusher.run(*fast, "push", "-q", "origin", "main", cwd=clone, timeout=3 * GIT_SECONDS_MAX)
    peak.cancel()
    commit = await pusher.rev_parse(clone, "HEAD")
    assert upstream.oid("main") == commit
    assert (await pusher.ls_remote(through))["refs/heads/main"] == commit
    assert _peak[0] - before < 32 << 20


_peak = [0]


async def _peak_resident_bytes() -> None:
    while True:
        _peak[0] = max(_peak[0], _resident_bytes())
        await asyncio.sleep(0.02)


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def test_a_client_that_leaves_in_the_middle_changes_nothing(
    mirror: MirrorService, forge: HttpBackend, upstream: Upstream, through: str
) -> None:
    before = upstream.refs()
    host, port = mirror.service.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    body = b"0083" + b"0" * 40 + b" " + b"1" * 40
    writer.write(
        f"POST /{NAME}.git/git-receive-pack HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
        f"Content-Type: {push.REQUEST_TYPE}\r\nAuthorization: {_basic()}\r\n\r\n".encode()
        + b"%x\r\n%b\r\n" % (len(body), body)
    )
    await writer.drain()
    writer.transport.abort()
    await _until_metric(mirror, "failed")
    assert upstream.refs() == before
    assert forge.children == frozenset()


async def _until_metric(mirror: MirrorService, outcome: str) -> None:
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        while await mirror.metric("git_mirror_pushes_total", outcome=outcome) != 1:
            pass


def _basic() -> str:
    return aiohttp.encode_basic_auth(USER, PASSWORD)


async def test_an_upstream_that_is_down_or_has_moved_is_told_to_the_client(
    mirror: MirrorService, forge: HttpBackend, upstream: Upstream, pusher: GitClient, through: str
) -> None:
    clone = await pusher.clone(through)
    await pusher.commit_file(clone, "a.txt", "a", "Mine")
    forge.faults.only = lambda request: "receive-pack" in request.query + request.path
    forge.faults.redirect = (NAME, "acme/elsewhere")
    done = await pusher.run("push", "origin", "main", cwd=clone, check=False)
    assert done.returncode != 0
    answer = await mirror.get(f"/{NAME}/info/refs?service=git-receive-pack")
    assert (answer.status, "has moved; push there directly" in answer.text) == (502, True)
    forge.faults.redirect = None
    forge.faults.status, forge.faults.retry_after = 503, "7"
    answer = await mirror.get(f"/{NAME}/info/refs?service=git-receive-pack")
    assert (answer.status, answer.headers["Retry-After"]) == (503, "7")
    forge.faults.status = None
    forge.faults.only = lambda request: request.operation == "push"
    forge.faults.cut_after_bytes = 8
    done = await pusher.run("push", "origin", "main", cwd=clone, check=False)
    assert done.returncode != 0, "an answer that was cut off is no success"
    await _until_metric(mirror, "failed")
    forge.faults.only = forge.faults.cut_after_bytes = None
    # The upstream had taken it all the same, and the mirror went to look.
    listed = await pusher.ls_remote(through)
    assert listed["refs/heads/main"] == upstream.oid("main")


@in_this_process
async def test_a_push_succeeds_though_the_mirror_can_not_refresh(
    mirror: MirrorService,
    forge: HttpBackend,
    upstream: Upstream,
    pusher: GitClient,
    through: str,
) -> None:
    clone = await pusher.clone(through)
    commit = await pusher.commit_file(clone, "a.txt", "a", "Mine")
    forge.faults.only = lambda request: "receive-pack" not in request.query + request.path
    forge.faults.status = 500
    with structlog.testing.capture_logs() as logs:
        await pusher.run("push", "-q", "origin", "main", cwd=clone)
    assert upstream.oid("main") == commit
    assert any(line["event"] == "pushed_but_not_here_yet" for line in logs)
    forge.faults.status = None
    await mirror.announce(upstream)
    assert (await pusher.ls_remote(through))["refs/heads/main"] == commit


@in_this_process
@pytest.mark.parametrize(
    ("headers", "status", "words"),
    [
        ({"Content-Type": "text/plain"}, 415, "expected Content-Type"),
        ({"Content-Encoding": "compress"}, 415, "expected Content-Encoding"),
        ({"Content-Encoding": "gzip"}, 400, "can't be decoded"),
    ],
)
async def test_a_push_that_is_none_is_refused_with_a_sentence(
    mirror: MirrorService, headers: dict[str, str], status: int, words: str
) -> None:
    sent = {"Content-Type": push.REQUEST_TYPE, "Authorization": _basic(), **headers}
    answer = await mirror.ask("POST", f"/{NAME}/git-receive-pack", body=b"0000", headers=sent)
    assert answer.status == status
    assert words in answer.text


async def test_a_push_over_the_limit_is_refused(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    place = tmp_path / "m"
    place.mkdir()
    (place / "token").write_text(PASSWORD)
    (place / "token").chmod(0o600)
    async with mirroring(
        forge,
        place,
        names=[upstream.name],
        repository=f"push: proxy\ncredentials: {{username: {USER}, password_file: token}}",
        sections="limits: {push_bytes_max: 1KiB}",
    ) as mirror:
        answer = await mirror.ask(
            "POST",
            f"/{NAME}/git-receive-pack",
            body=b"0000" + b"x" * 2000,
            headers={"Content-Type": push.REQUEST_TYPE, **git_protocol(0)},
        )
        assert answer.status == 413
        assert "raise limits.push_bytes_max" in answer.text
