import subprocess
from pathlib import Path
from shutil import which

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.config.addresses import (
    ListenAddress,
    host_of,
    is_in_the_clear,
    read_listen_address,
    read_upstream,
)
from mirror.config.names import (
    RESERVED_SEGMENTS,
    read_path,
    read_ref_pattern,
    read_repository_name,
    read_username,
)


@pytest.mark.parametrize(
    "name",
    [
        "app",
        "acme/gitops-repo",
        "group/sub/project",
        "Acme/App.v2_x",
        "1/2",
        "_x",
        "app/webhooks",
        "gitx/a.gitx",
        "x" * 255,
    ],
)
def test_a_repository_name_is_taken_as_it_is(name: str) -> None:
    assert read_repository_name(name) == name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "an empty segment"),
        ("/app", "an empty segment"),
        ("acme/", "an empty segment"),
        ("acme//app", "an empty segment"),
        (".hidden/app", "must not begin with"),
        ("acme/..", "must not begin with"),
        ("acme/-app", "must not begin with"),
        ("acme/a b", "must be of letters"),
        ("acme/å", "must be of letters"),
        ("acme/a?b", "must be of letters"),
        ("acme\\app", "must be of letters"),
        ("acme/app.git", "ends in `.git` or `.lock`"),
        ("acme.git/app", "ends in `.git` or `.lock`"),
        ("acme/app.lock", "ends in `.git` or `.lock`"),
        ("x" * 256, "longer than 255 bytes"),
        *((segment, "a path of the service itself") for segment in RESERVED_SEGMENTS),
        ("webhooks/app", "a path of the service itself"),
    ],
)
def test_a_repository_name_that_could_be_no_path_is_refused(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_repository_name(name)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://github.com/acme/app.git", "https://github.com/acme/app.git"),
        ("https://github.com/acme/app/", "https://github.com/acme/app"),
        ("https://github.com/acme/app///", "https://github.com/acme/app"),
        ("HTTPS://GitHub.com/Acme/App", "https://github.com/Acme/App"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://[::1]:8080/a", "http://[::1]:8080/a"),
        ("https://git.example/a%20b/~c", "https://git.example/a%20b/~c"),
    ],
)
def test_an_upstream_is_taken_without_its_trailing_slash(text: str, url: str) -> None:
    assert read_upstream(text) == url


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "must be a URL"),
        ("github.com/acme/app", "must be a URL"),
        ("git@github.com:acme/app.git", "SSH, git:// and files are not supported"),
        ("ssh://git@github.com/acme/app.git", "must be a URL"),
        ("git://github.com/acme/app.git", "must be a URL"),
        ("file:///srv/git/app.git", "must be a URL"),
        ("/srv/git/app.git", "must be a URL"),
        ("ext::sh -c touch% /tmp/x", "must be a URL"),
        ("https://user:secret@github.com/a", "carries a user name or password"),
        ("https://secret@github.com/a", "carries a user name or password"),
        ("https://@github.com/a", "carries a user name or password"),
        ("https://github.com/a?ref=main", "no `.query`"),
        ("https://github.com/a#main", "no `#fragment`"),
        ("https://github.com/a?", "no `.query`"),
        ("https://github.com/a b", "percent-encode"),
        ("https://github.com/a\tb", "percent-encode"),
        ("https://github.com\\a", "percent-encode"),
        ("https://githüb.com/a", "percent-encode"),
        ("https://", "no valid host"),
        ("https:///a", "no valid host"),
        ("https://:443/a", "no valid host"),
        ("https://github.com:/a", "no valid host"),
        ("https://github.com:0/a", "no valid host"),
        ("https://git(hub).com/a", "no valid host"),
        ("https://github.com:99999/a", "not a valid URL"),
        ("https://github.com:secret/a", "not a valid URL"),
        ("https://[::1/a", "not a valid URL"),
    ],
)
def test_a_url_that_is_no_upstream_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        read_upstream(text)
    assert "secret" not in str(caught.value)


@given(st.text(alphabet="htps:/[]@?#%.x1\\ é", max_size=20).map(lambda rest: "https://" + rest))
def test_any_url_is_taken_or_refused_and_taken_once_more_unchanged(text: str) -> None:
    try:
        url = read_upstream(text)
    except ValueError:
        return
    assert read_upstream(url) == url
    assert host_of(url)


@pytest.mark.parametrize(
    ("url", "clear"),
    [
        ("https://git.example/a", False),
        ("http://git.example/a", True),
        ("http://10.0.0.1/a", True),
        ("http://localhost.example/a", True),
        ("http://localhost:3000/a", False),
        ("http://git.localhost/a", False),
        ("http://127.0.0.1:8080/a", False),
        ("http://127.9.9.9/a", False),
        ("http://[::1]/a", False),
        ("http://[2001:db8::1]/a", True),
    ],
)
def test_plain_http_is_in_the_clear_unless_it_stays_on_this_machine(url: str, clear: bool) -> None:
    assert is_in_the_clear(url) is clear


GOOD_REFS = [
    "refs/heads/*",
    "refs/tags/*",
    "refs/heads/main",
    "refs/heads/release-*",
    "refs/heads/*/stable",
    "refs/pull/*/head",
    "refs/*",
    "refs/heads/æøå",
    "refs/git-mirrored/x",
]

BAD_REFS = {
    "refs/heads/*/*": "more than one",
    "refs/heads/a..b": "can't be a ref name",
    "refs/heads/a b": "can't be a ref name",
    "refs/heads/a~1": "can't be a ref name",
    "refs/heads/a^{}": "can't be a ref name",
    "refs/heads/a?": "can't be a ref name",
    "refs/heads/[ab]": "can't be a ref name",
    "refs/heads/a\\b": "can't be a ref name",
    "refs/heads/.a": "can't be a ref name",
    "refs/heads/a.lock": "can't be a ref name",
    "refs/heads/a.lock/b": "can't be a ref name",
    "refs/heads/a@{1}": "can't be a ref name",
    "refs/heads//a": "can't be a ref name",
    "refs/heads/a.": "can't be a ref name",
    "refs/heads/": "can't be a ref name",
    "refs/": "can't be a ref name",
}

OTHER_BAD_REFS = {
    "": "must be a full name",
    "main": "must be a full name, like `refs/heads/main`",
    "heads/*": "must be a full name",
    "HEAD": "must be a full name",
    "*": "must be a full name",
    "+refs/heads/*:refs/heads/*": "is a refspec",
    "refs/heads/*:refs/heads/*": "is a refspec",
    "^refs/heads/tmp": "is a refspec",
    "refs/git-mirror": "the mirror's own",
    "refs/git-mirror/old/*": "the mirror's own",
}


@pytest.mark.parametrize("pattern", GOOD_REFS)
def test_a_ref_pattern_is_taken_as_it_is(pattern: str) -> None:
    assert read_ref_pattern(pattern) == pattern


@pytest.mark.parametrize(("pattern", "reason"), (BAD_REFS | OTHER_BAD_REFS).items())
def test_a_pattern_that_no_ref_could_match_is_refused(pattern: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_ref_pattern(pattern)


@pytest.mark.skipif(which("git") is None, reason="there is no git on this machine")
@pytest.mark.parametrize("pattern", [*GOOD_REFS, *BAD_REFS])
def test_git_has_the_same_opinion_of_every_pattern(pattern: str) -> None:
    command = ["git", "check-ref-format", "--refspec-pattern", pattern]
    assert (subprocess.run(command, check=False).returncode == 0) is (pattern in GOOD_REFS)


def test_a_path_is_taken_as_it_is() -> None:
    assert read_path("secrets/token") == Path("secrets/token")
    assert read_path("/run/secrets/token") == Path("/run/secrets/token")


@pytest.mark.parametrize("text", ["~/token", "~operator/token", "~"])
def test_a_tilde_is_refused_since_it_is_not_expanded(text: str) -> None:
    with pytest.raises(ValueError, match="`~` is not expanded"):
        read_path(text)


def test_an_empty_path_is_refused() -> None:
    with pytest.raises(ValueError, match="is empty"):
        read_path("")


@pytest.mark.parametrize("text", ["ghp_0123456789", "github_pat_0123456789", "glpat-0123456789"])
def test_a_token_in_the_place_of_its_file_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(ValueError, match="put the token in a file") as caught:
        read_path(text)
    assert "0123456789" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "user:secret"])
def test_a_user_name_that_basic_authentication_can_not_carry_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must not hold a colon"):
        read_username(text)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:8470", "127.0.0.1", 8470),
        ("127.0.0.1:0", "127.0.0.1", 0),
        ("localhost:80", "localhost", 80),
        ("mirror-1.example:65535", "mirror-1.example", 65535),
        ("[::]:8470", "::", 8470),
        ("[2001:db8::1]:8470", "2001:db8::1", 8470),
    ],
)
def test_an_address_to_listen_on_reads_and_writes_the_same(text: str, host: str, port: int) -> None:
    address = read_listen_address(text)
    assert address == ListenAddress(host, port)
    assert str(address) == text


@pytest.mark.parametrize(
    "text", ["", "8470", ":8470", "127.0.0.1", "::1:8470", "*:8470", "http://x:80", "a:b", "a:-1"]
)
def test_what_is_no_address_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match="is not `host:port`; write it like"):
        read_listen_address(text)


@pytest.mark.parametrize("text", ["127.0.0.256:80", "1.2.3:80", "[::1::2]:80", "[127.0.0.1]:80"])
def test_an_impossible_ip_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not an IP address"):
        read_listen_address(text)


def test_a_port_over_the_highest_is_refused() -> None:
    with pytest.raises(ValueError, match="the port 65536 is over 65535"):
        read_listen_address("localhost:65536")
