"""Secrets come from files, follow their changes, and never show themselves.

The contract at the end is for every way to sign in.
"""

import base64
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from mirror.config import (
    CredentialSettings,
    GithubAppSettings,
    NetrcSettings,
    PasswordSettings,
    RepositorySettings,
)
from mirror.errors import UpstreamRefused
from mirror.upstream.credentials import (
    SECRET_BYTES_MAX,
    BasicCredentials,
    CredentialKind,
    Credentials,
    NetrcCredentials,
    Secret,
    SecretFile,
    basic,
    concealed,
)
from mirror.upstream.keyring import Keyring
from tests.github_server import APP_ID, Clock, github_site, pem
from tests.upstream.conftest import AGENT


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "secret"


def decoded(header: str) -> bytes:
    scheme, _, value = header.partition(" ")
    assert scheme == "Basic"
    return base64.b64decode(value, validate=True)


@pytest.mark.parametrize(
    ("content", "secret"),
    [
        (b"token", b"token"),
        (b"token\n", b"token"),
        (b"token\r\n", b"token"),
        (b"token\n\n", b"token"),
        (b" to ken \n", b" to ken "),
        (b"two\nlines\n", b"two\nlines"),
        ("pä:ss✓".encode(), "pä:ss✓".encode()),
        (b"\xff\x00", b"\xff\x00"),
        (b"x" * SECRET_BYTES_MAX, b"x" * SECRET_BYTES_MAX),
    ],
)
async def test_only_the_newline_at_the_end_is_not_the_secrets(
    file: Path, content: bytes, secret: bytes
) -> None:
    file.write_bytes(content)
    assert SecretFile(file).read().reveal() == secret
    assert decoded(await BasicCredentials("ci", file).authorization()) == b"ci:" + secret


def test_a_file_replaced_or_rewritten_is_read_anew(file: Path) -> None:
    secret = SecretFile(file)
    file.write_bytes(b"first")
    assert secret.read().reveal() == b"first"
    file.with_name("new").write_bytes(b"other")
    file.with_name("new").rename(file)
    assert secret.read().reveal() == b"other"
    file.write_bytes(b"third, of another length")
    assert secret.read().reveal() == b"third, of another length"


def test_a_secret_behind_a_symlink_follows_where_it_points(file: Path) -> None:
    """Kubernetes swaps a symlink to rotate a mounted secret."""
    old, new = file.with_name("..v1"), file.with_name("..v2")
    old.write_bytes(b"first")
    new.write_bytes(b"later")
    stamp = old.stat()
    os.utime(new, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    file.symlink_to(old)
    secret = SecretFile(file)
    assert secret.read().reveal() == b"first"
    file.with_name("link").symlink_to(new)
    file.with_name("link").rename(file)
    assert secret.read().reveal() == b"later"


def test_a_file_rewritten_in_place_with_its_old_date_is_read_anew(file: Path) -> None:
    """As `cp --preserve` and rsync do it: length, date and inode are the same."""
    file.write_bytes(b"first")
    stamp = file.stat()
    secret = SecretFile(file)
    secret.read()
    while file.stat().st_ctime_ns == stamp.st_ctime_ns:  # the kernel's clock ticks coarsely
        file.write_bytes(b"later")
        os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert secret.read().reveal() == b"later"


def test_an_unchanged_file_is_read_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_bytes(b"token")
    secret = SecretFile(file)
    first = secret.read()
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("read again"))
    assert secret.read() is first


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "can't be read: No such file or directory"),
        (b"", "is empty"),
        (b"\n\r\n", "is empty"),
        (b"x" * (SECRET_BYTES_MAX + 1), "is too long to be a secret"),
    ],
)
async def test_a_file_that_can_not_be_used_is_named(
    file: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UpstreamRefused) as caught:
        await BasicCredentials("ci", file).authorization()
    assert message in str(caught.value)
    assert str(file) in str(caught.value)


async def test_a_directory_is_no_secret(tmp_path: Path) -> None:
    with pytest.raises(UpstreamRefused, match="Is a directory"):
        await BasicCredentials("ci", tmp_path).authorization()


def test_a_file_that_goes_away_is_an_error_even_if_it_was_read_before(file: Path) -> None:
    """Whoever removes a secret wants it not to be used any more."""
    file.write_bytes(b"token")
    secret = SecretFile(file)
    secret.read()
    file.unlink()
    with pytest.raises(FileNotFoundError):
        secret.read()
    file.write_bytes(b"back again")
    assert secret.read().reveal() == b"back again"


def test_secrets_do_not_show(file: Path) -> None:
    file.write_bytes(b"s3cret")
    secret = SecretFile(file)
    shown = [secret.read(), secret, BasicCredentials("ci", file), {"secret": secret.read()}]
    for value in shown:
        assert "***" in repr(value)
        assert "s3cret" not in f"{value!r} {value!s} {value}"
    assert f"{Secret(b's3cret')}" == "***"


async def test_user_names_are_utf_8(file: Path) -> None:
    file.write_bytes(b"token")
    found = await BasicCredentials("jürgen", file).authorization()
    assert decoded(found) == "jürgen:token".encode()


# --- netrc files -------------------------------------------------------------------------------


async def test_a_netrc_file_signs_in_where_it_has_an_entry(file: Path) -> None:
    file.write_text(
        "machine other.example login a password x\n"
        "machine git.example:8443\n  login bot\n  password p4ss\n"
        'machine git.example password "sp ace"\n'
    )
    with_port = NetrcCredentials(file, "git.example", 8443, username="git")
    assert decoded(await with_port.authorization()) == b"bot:p4ss"
    without = NetrcCredentials(file, "git.example", 443, username="git")
    assert decoded(await without.authorization()) == b"git:sp ace"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"machine other.example password s3cret", "no entry for git.example; add `machine git"),
        (b"machine git.example login s3cret", "the entry in line 1 has no `password`"),
        (b"s3cret", "line 1 has a word where `machine` or `default` is expected"),
        (b"machine git.example password s3cret \xff", "not UTF-8"),
    ],
)
async def test_a_netrc_file_of_no_use_is_named_and_not_repeated(
    file: Path, content: bytes, words: str
) -> None:
    file.write_bytes(content)
    with pytest.raises(UpstreamRefused) as caught:
        await NetrcCredentials(file, "git.example", 443, username="git").authorization()
    assert words in str(caught.value)
    assert str(file) in str(caught.value)
    assert "s3cret" not in str(caught.value)


# --- what a peer says --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said", ["hunter2/+", "aHVudGVyMi8r", "Basic Y2k6aHVudGVyMi8r", "hunter2%2F%2B"]
)
def test_what_a_peer_repeats_of_a_request_is_concealed(said: str) -> None:
    authorization = basic("ci", Secret(b"hunter2/+"))
    encoded = authorization.removeprefix("Basic ")
    text = concealed(f"you sent {said}, or {encoded}", authorization)
    assert encoded not in text
    if said != "aHVudGVyMi8r":  # of the password alone: nobody sends that
        assert text.startswith("you sent ***, or ***")
    assert concealed("plain words", None) == concealed("plain words", authorization)


# --- the contract ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """One way to sign in.

    Attributes:
        credentials: It.
        file: Where its secret is.
        other: Another content of that file, with which it signs in as well.
        clock: Its time.
        secrets: What must not show.
    """

    credentials: Credentials
    file: Path
    other: bytes
    clock: Clock
    secrets: list[str]


@pytest.fixture(params=list(CredentialKind))
async def way(
    request: pytest.FixtureRequest,
    session: aiohttp.ClientSession,
    upstream_root: Path,
    file: Path,
) -> AsyncIterator[Way]:
    clock = Clock()
    async with github_site(upstream_root, clock) as site:
        keyring = Keyring(session, agent=AGENT, clock=clock, monotonic=clock)
        written: CredentialSettings
        match request.param:
            case CredentialKind.PASSWORD_FILE:
                file.write_bytes(b"s3cret")
                written, other = PasswordSettings(username="ci", password_file=file), b"another"
            case CredentialKind.NETRC_FILE:
                file.write_bytes(b"machine 127.0.0.1 login ci password s3cret")
                written, other = (
                    NetrcSettings(netrc_file=file, username="ci"),
                    b"default password x",
                )
            case _:
                file.write_bytes(pem())
                written = GithubAppSettings(app_id=APP_ID, private_key_file=file)
                other = pem() + b"\n"
        settings = RepositorySettings(
            name="acme/app", upstream=site.forge.repository_url("acme/app"), credentials=written
        )
        credentials = keyring.credentials(settings)
        assert credentials is not None
        assert keyring.credentials(settings) is credentials, (
            "the clients of a repository share them"
        )
        credentials.standing.clock = clock
        yield Way(
            credentials, file, other, clock, ["s3cret", "ghs_", *pem().decode().split("\n")[1:-2]]
        )
        await keyring.close()


async def test_credentials_are_one_header_and_the_same_while_nothing_changes(way: Way) -> None:
    first = await way.credentials.authorization()
    assert decoded(first).count(b":") == 1
    assert await way.credentials.authorization() == first


async def test_credentials_that_are_refused_are_not_tried_twice(way: Way) -> None:
    first = await way.credentials.authorization()
    assert await way.credentials.renewed(first) is None


async def test_credentials_that_changed_meanwhile_are_tried_in_the_place_of_refused_ones(
    way: Way,
) -> None:
    first = await way.credentials.authorization()
    way.file.write_bytes(way.other)
    way.clock.now += 120
    renewed = await way.credentials.renewed(first)
    assert renewed is not None
    assert renewed != first
    assert await way.credentials.authorization() == renewed


async def test_credentials_whose_file_is_gone_fail_with_its_name_and_since_when(way: Way) -> None:
    way.file.rename(way.file.with_name("away"))
    began_at = way.clock.now
    for _ in range(3):
        with pytest.raises(UpstreamRefused) as caught:
            await way.credentials.authorization()
        assert f"{way.file}" in str(caught.value)
        assert "No such file" in str(caught.value)
        assert "failing since 2026-11-18 11:06:40 UTC" in str(caught.value)
        way.clock.now += 60
    assert way.credentials.standing.failing_since == began_at
    way.file.with_name("away").rename(way.file)
    await way.credentials.authorization()
    way.credentials.standing.answered(200)
    assert not way.credentials.standing.failing_since
    assert way.credentials.standing.accepted_at == way.clock.now


async def test_the_standing_names_the_credentials_and_shows_no_secret(way: Way) -> None:
    header = await way.credentials.authorization()
    standing = way.credentials.standing
    assert str(way.file) in standing.words
    assert {401, 403, 404} == standing.mend.keys()
    shown = f"{way.credentials!r} {standing!r}"
    for secret in (*way.secrets, header, header.removeprefix("Basic ")):
        assert secret not in shown
