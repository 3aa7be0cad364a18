from pathlib import Path

import pytest

from mirror.config import WEBHOOK_SECRETS_MAX
from mirror.upstream.webhook_secrets import WebhookSecrets


def secrets_in(file: Path, content: bytes) -> list[bytes]:
    file.write_bytes(content)
    return [secret.reveal() for secret in WebhookSecrets(file).read()]


@pytest.mark.parametrize(
    ("content", "secrets"),
    [
        (b"one", [b"one"]),
        (b"one\n", [b"one"]),
        (b"one\r\n", [b"one"]),
        (b"new\nold\n", [b"new", b"old"]),
        (b"\n \nnew\r\n\t\r\nold\r\n\r\n", [b"new", b"old"]),
        (b" spaces stay ", [b" spaces stay "]),
        (b"\xff\x00", [b"\xff\x00"]),
    ],
)
def test_each_line_that_is_not_blank_is_a_secret(
    tmp_path: Path, content: bytes, secrets: list[bytes]
) -> None:
    assert secrets_in(tmp_path / "secrets", content) == secrets


@pytest.mark.parametrize("content", [b"", b"\n\n", b" \r\n \n"])
def test_a_file_without_a_secret_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ValueError, match="is empty"):
        secrets_in(tmp_path / "secrets", content)


def test_more_secrets_than_the_limit_are_refused_without_a_word_of_them(tmp_path: Path) -> None:
    lines = b"".join(b"hunter%d\n" % number for number in range(WEBHOOK_SECRETS_MAX + 1))
    with pytest.raises(ValueError, match="holds 9 lines; at most 8") as refusal:
        secrets_in(tmp_path / "secrets", lines)
    assert "hunter" not in str(refusal.value)


def test_a_changed_file_is_split_anew_and_an_unchanged_one_is_not(tmp_path: Path) -> None:
    file = tmp_path / "secrets"
    file.write_text("old\n")
    secrets = WebhookSecrets(file)
    first = secrets.read()
    assert secrets.read() is first
    file.write_text("new\nold\n")
    assert [secret.reveal() for secret in secrets.read()] == [b"new", b"old"]
    assert "new" not in repr(secrets.read())
