import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.access.presented import HEADER_BYTES_MAX, Presented, read_authorization
from mirror.errors import Unauthenticated


def basic(pair: str) -> str:
    return "Basic " + base64.b64encode(pair.encode()).decode()


@pytest.mark.parametrize(
    ("header", "secret"),
    [
        (basic("git:t0ken"), b"t0ken"),
        (basic("any name:with:colons"), b"with:colons"),
        (basic("t0ken:"), b"t0ken"),
        (basic("t0ken:").replace("Basic", "bASIC"), b"t0ken"),
        ("Bearer t0ken", b"t0ken"),
        ("bearer  t0ken ", b"t0ken"),
    ],
)
def test_the_secret_is_the_password_or_the_bearer_token(header: str, secret: bytes) -> None:
    presented = read_authorization(header)
    assert presented.secret == secret
    assert presented.digest == hashlib.sha256(header.encode()).digest()


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("", "expected Basic or Bearer"),
        ("Digest username=x", "expected Basic or Bearer"),
        ("Bearer", "are empty"),
        ("Bearer   ", "are empty"),
        ("Basic !!!", "not base64"),
        ("Basic " + base64.b64encode(b"no-colon").decode(), "no colon"),
        (basic(":"), "are empty"),
        ("Bearer " + "x" * HEADER_BYTES_MAX, "is over"),
    ],
)
def test_what_is_no_credential_is_refused_with_a_sentence(header: str, words: str) -> None:
    with pytest.raises(Unauthenticated, match=words):
        read_authorization(header)


@given(st.one_of(st.text(), st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape"))))
def test_garbage_is_refused_and_nothing_else(header: str) -> None:
    for candidate in (header, f"Basic {header}", f"Bearer {header}"):
        try:
            presented = read_authorization(candidate)
        except Unauthenticated:
            continue
        assert presented.secret


def test_what_was_shown_does_not_show_itself() -> None:
    assert "t0ken" not in repr(read_authorization("Bearer t0ken"))
    assert repr(Presented(b"a", b"b")) == "Presented()"
