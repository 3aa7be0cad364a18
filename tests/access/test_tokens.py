import json
import os
import stat
from pathlib import Path

import pytest
import structlog

from mirror.access.reader import Reader
from mirror.access.tokens import LOOK_SECONDS, Tokens, create_token, read_tokens, revoke_token
from mirror.errors import LocalError


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens.json"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tokens(file: Path, clock: Clock) -> Tokens:
    return Tokens(file, clock=clock, wall_clock=lambda: 1_000_000.0)


def make(file: Path, name: str, *patterns: str, expires_at: float | None = None) -> bytes:
    made = create_token(file, name, repositories=patterns or ("*",), expires_at=expires_at)
    return made.encode()


def test_a_token_proves_its_reader_and_nothing_else_does(file: Path, tokens: Tokens) -> None:
    secret = make(file, "flux-oslo", "acme/*")
    assert tokens.find(secret) == (Reader("token flux-oslo", ("acme/*",)), None)
    for other in (b"", secret[:-1], secret + b"x", secret.swapcase(), b"gmt_" + b"A" * 43):
        assert tokens.find(other) is None


def test_the_file_holds_no_token_and_is_nobody_elses_to_read(file: Path) -> None:
    secret = make(file, "flux-oslo")
    assert secret not in file.read_bytes()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert json.loads(file.read_text())["version"] == 1


def test_a_revoked_token_proves_nothing_within_a_second(
    file: Path, tokens: Tokens, clock: Clock
) -> None:
    kept, gone = make(file, "kept"), make(file, "gone")
    assert tokens.find(gone)
    before = tokens.generation
    revoke_token(file, "gone")
    clock.now += LOOK_SECONDS
    assert tokens.find(gone) is None
    assert tokens.find(kept)
    assert tokens.generation > before


def test_a_token_ends_when_its_time_is_over(file: Path, tokens: Tokens) -> None:
    assert tokens.find(make(file, "good", expires_at=1_000_000.1))
    tokens._look_at = 0.0
    assert tokens.find(make(file, "over", expires_at=1_000_000.0)) is None


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"tokens": [{"name": 1}]}', b"\xff"])
def test_a_file_that_makes_no_sense_lets_nobody_in_and_is_not_written_over(
    file: Path, tokens: Tokens, content: bytes, clock: Clock
) -> None:
    secret = make(file, "flux")
    assert tokens.find(secret)
    file.write_bytes(content)
    clock.now += LOOK_SECONDS
    with structlog.testing.capture_logs() as logs:
        assert tokens.find(secret) is None
    assert [line["event"] for line in logs] == ["tokens_unreadable"]
    with pytest.raises(LocalError, match="can't be read"):
        make(file, "other")
    assert file.read_bytes() == content


@pytest.mark.parametrize("name", ["", "Flux", "-flux", "a b", "a/b", "x" * 64, "flux\n"])
def test_a_name_is_a_short_word(file: Path, name: str) -> None:
    with pytest.raises(LocalError, match="is no name"):
        make(file, name)


def test_a_name_is_taken_once_and_only_what_is_there_is_revoked(file: Path) -> None:
    make(file, "flux")
    with pytest.raises(LocalError, match="there is a token 'flux' already"):
        make(file, "flux")
    with pytest.raises(LocalError, match="there is no token 'argo'"):
        revoke_token(file, "argo")
    assert [one.name for one in read_tokens(file)] == ["flux"]


def test_a_write_that_fails_leaves_the_tokens_as_they_were(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(file, "flux")
    before = file.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LocalError, match="No space left"):
        make(file, "argo")
    assert file.read_bytes() == before


def test_two_who_make_tokens_at_once_both_have_theirs(file: Path, tmp_path: Path) -> None:
    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            try:
                make(file, f"token-{number}")
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    assert len(read_tokens(file)) == 4
