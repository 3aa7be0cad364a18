import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mirror.upstream.forges import RepositoryKey, repository_key

ACME = RepositoryKey("github.com", "acme/gitops")


@pytest.mark.parametrize(
    "url",
    [
        "https://github.com/acme/gitops",
        "https://github.com/acme/gitops.git",
        "https://github.com/acme/gitops.git/",
        "https://github.com//acme/gitops//",
        "HTTPS://GitHub.com/Acme/GitOps.GIT",
        "https://x-access-token:secret@github.com/acme/gitops.git",
        "https://github.com:443/acme/gitops",
        "http://github.com:80/acme/gitops",
        "http://github.com/acme/gitops",
        "https://github.com/acme/git%6Fps",
        "https://github.com/acme/gitops?tab=readme#top",
        "git://github.com/acme/gitops.git",
        "git://github.com:9418/acme/gitops.git",
        "ssh://git@github.com/acme/gitops.git",
        "ssh://git@github.com:22/acme/gitops.git",
        "ssh://git@github.com:2222/acme/gitops.git",
        "git@github.com:acme/gitops.git",
        "git@GitHub.com:/Acme/gitops",
        "github.com:acme/gitops.git",
    ],
)
def test_all_the_ways_to_write_a_repository_s_url_have_one_key(url: str) -> None:
    assert repository_key(url) == ACME


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("http://127.0.0.1:8123/acme/gitops.git", ("127.0.0.1:8123", "acme/gitops")),
        ("https://gitlab.acme.no:8443/a/b/c/d.git", ("gitlab.acme.no:8443", "a/b/c/d")),
        ("https://example.com:80/a/b", ("example.com:80", "a/b")),
        ("http://example.com:443/a/b", ("example.com:443", "a/b")),
        ("http://[::1]:8123/a/b", ("[::1]:8123", "a/b")),
        ("http://[::1]/a/b", ("[::1]", "a/b")),
        ("git@[::1]:a/b.git", ("[::1]", "a/b")),
        ("https://www.example.com/a", ("www.example.com", "a")),
        ("https://example.com/a.git.git", ("example.com", "a.git")),
        ("https://example.com/gr%C3%B8t/b%2Fc", ("example.com", "grøt/b/c")),
    ],
)
def test_a_key_keeps_what_tells_repositories_apart(url: str, key: tuple[str, str]) -> None:
    assert repository_key(url) == RepositoryKey(*key)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "acme/gitops",
        "/srv/git/acme.git",
        "./a:b",
        "file:///srv/git/acme.git",
        "ftp://example.com/a/b",
        "https://",
        "https:///acme/gitops",
        "https://github.com",
        "https://github.com/.git",
        "git@github.com:/",
        "git@github.com:",
        "https://example.com:port/a",
        "https://example.com:99999/a",
        "https://[::1/a",
        "https://example.com/%ff",
        " https://example.com/a",
    ],
)
def test_a_url_of_no_repository_we_could_know_has_no_key(url: str) -> None:
    assert repository_key(url) is None


@given(st.text(st.characters()) | st.from_regex(r"(https?|ssh|git)://[^/]*(:\d*)?/.*"))
@example("http://℀/a")
def test_any_text_has_a_key_or_none(url: str) -> None:
    key = repository_key(url)
    assert key is None or (key.host and key.path)


names = st.from_regex(r"[a-zA-Z0-9][a-zA-Z0-9_-]{0,10}", fullmatch=True)


@given(names, st.lists(names, min_size=1, max_size=4))
def test_https_and_ssh_urls_of_a_repository_have_one_key(host: str, path: list[str]) -> None:
    https = repository_key(f"https://{host}.example/{'/'.join(path)}")
    assert https is not None
    assert https == repository_key(f"git@{host.upper()}.example:{'/'.join(path)}.git")
    assert https == repository_key(f"ssh://git@{host}.example:2222/{'/'.join(path).upper()}/")
