import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.config import NetrcEntry, find_entry, parse_netrc
from mirror.config.netrc import ENTRIES_MAX


def found(text: str, host: str = "git.example", port: int = 443) -> tuple[str | None, str | None]:
    entry = find_entry(parse_netrc(text), host, port)
    assert entry is not None
    return entry.login, entry.password


@pytest.mark.parametrize(
    "text",
    [
        "machine git.example login bot password p4ss",
        "machine git.example\n  login bot\n  password p4ss\n",
        "machine\tgit.example\r\nlogin bot\r\npassword p4ss\r\n",
        "# a comment, with machine git.example\nmachine GIT.example user bot password p4ss",
        "default login bot password p4ss",
        "machine git.example account x login bot password p4ss",
        "machine git.example:443 login bot password p4ss",
        "machine git.example port 443 protocol https login bot password p4ss",
        'machine "git.example" login "bot" password "p4ss"',
        (
            "macdef init\ncd /pub\nmachine git.example password no\n\n"
            "machine git.example login bot password p4ss"
        ),
    ],
)
def test_an_entry_is_found_however_it_is_written(text: str) -> None:
    assert found(text) == ("bot", "p4ss")


def test_the_entry_with_the_port_goes_first_then_the_first_for_the_host_then_default() -> None:
    text = (
        "default login d password 1\n"
        "machine git.example login a password 2\n"
        "machine git.example login b password 3\n"
        "machine git.example:8443 login c password 4\n"
        "machine [::1]:8080 login e password 5\n"
        "machine ::1 login f password 6\n"
    )
    assert found(text) == ("a", "2")
    assert found(text, port=8443) == ("c", "4")
    assert found(text, "other.example") == ("d", "1")
    assert found(text, "::1", 8080) == ("e", "5")
    assert found(text, "::1") == ("f", "6")
    assert find_entry(parse_netrc(text.split("\n", 1)[1]), "other.example", 443) is None


def test_a_quoted_password_may_hold_anything() -> None:
    text = r'machine git.example login bot password "a b\"c\\d\te#"'
    assert found(text) == ("bot", 'a b"c\\d\te#')
    assert found("machine git.example password p#ss") == (None, "p#ss")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hunter2", "line 1 has a word where `machine` or `default` is expected"),
        ("\n\nmachine a login b\nhunter2", "line 4 has a word where"),
        ("machine git.example password", "the end of line 1 has nothing after it"),
        ("machine", "the end of line 1 has nothing after it"),
        ('machine a password "hunter2', "line 1 has a quotation mark without its other one"),
        ("machine a port hunter2 password b", "line 1 has a port that is no number"),
        ("machine a password b\n" * (ENTRIES_MAX + 1), "more than 1000 entries"),
    ],
)
def test_what_is_wrong_is_told_by_its_line_and_never_repeated(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        parse_netrc(text)
    assert "hunter2" not in str(caught.value)


@given(st.text(st.characters(codec="utf-8"), max_size=200))
def test_anything_is_read_or_refused(text: str) -> None:
    try:
        entries = parse_netrc(text)
    except ValueError:
        return
    assert all(isinstance(one, NetrcEntry) for one in entries)


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1))
def test_every_password_can_be_quoted(password: str) -> None:
    escaped = password.replace("\\", "\\\\").replace('"', '\\"')
    assert found(f'machine git.example password "{escaped}"') == (None, password)


def test_a_password_does_not_show() -> None:
    assert "hunter2" not in repr(parse_netrc("machine a password hunter2"))
