"""Secrets come from files, follow their changes, and never show themselves."""

import base64
import os
from pathlib import Path

import pytest

from mirror.errors import UpstreamRefused
from mirror.upstream.credentials import SECRET_BYTES_MAX, BasicCredentials, Secret, SecretFile


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
def test_only_the_newline_at_the_end_is_not_the_secrets(
    file: Path, content: bytes, secret: bytes
) -> None:
    file.write_bytes(content)
    assert SecretFile(file).read().reveal() == secret
    assert decoded(BasicCredentials("ci", file).authorization()) == b"ci:" + secret


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
def test_a_file_that_can_not_be_used_is_named(
    file: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UpstreamRefused) as caught:
        BasicCredentials("ci", file).authorization()
    assert message in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_directory_is_no_secret(tmp_path: Path) -> None:
    with pytest.raises(UpstreamRefused, match="Is a directory"):
        BasicCredentials("ci", tmp_path).authorization()


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


def test_user_names_are_utf_8(file: Path) -> None:
    file.write_bytes(b"token")
    assert decoded(BasicCredentials("jürgen", file).authorization()) == "jürgen:token".encode()
