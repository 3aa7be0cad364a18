"""Places upstream: how they are written, and which names lead where."""

from urllib.parse import urlsplit

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from mirror.config import PushPolicy, Settings, check_files, json_schema, would_be
from mirror.config.names import read_repository_name
from tests.config.documents import loaded, refused

EXAMPLE = """\
defaults: {poll_interval: 1m, max_age: never, hold: 7s, webhook_secret_file: hook}
repositories: {github.com/acme/app: {upstream: https://git.example/app, forge: gitea}}
upstreams:
  - at: /github.com/acme
    from: https://github.com/acme/
    repositories: ["*", "!secret-*"]
  - at: /github.com/acme/team
    from: https://git.example/team
    forge: gitea
    repositories: ["**"]
    push: proxy
    poll_interval: 5m
    max_age: 1h
    unused: never
    gone_after: 1h
    private: true
  - at: /
    from: https://gitlab.example:8443/git/
    repositories: ["group/**", "!group/*/hidden"]
"""


@pytest.fixture(scope="module")
def settings() -> Settings:
    return loaded(EXAMPLE)


@pytest.mark.parametrize(
    ("name", "upstream"),
    [
        ("github.com/acme/web", "https://github.com/acme/web.git"),
        ("github.com/acme/app", "https://git.example/app"),
        ("github.com/acme/secret-plans", None),
        ("github.com/acme/web/deep", None),
        ("github.com/acme", None),
        ("github.com/acmeweb", None),
        ("github.com/acme/team/a/b", "https://git.example/team/a/b.git"),
        ("github.com/acme/team", "https://github.com/acme/team.git"),
        ("github.com/other/web", None),
        ("group/project", "https://gitlab.example:8443/git/group/project.git"),
        ("group/sub/project", "https://gitlab.example:8443/git/group/sub/project.git"),
        ("group/sub/hidden", None),
        ("group", None),
        ("webhooks/github", None),
        ("", None),
    ],
)
def test_the_nearest_place_decides_where_a_name_leads(
    settings: Settings, name: str, upstream: str | None
) -> None:
    found = settings.find(name)
    assert (found and found.upstream) == upstream
    if found is not None:
        assert found.name == name


def test_a_place_has_the_keys_of_a_repository(settings: Settings) -> None:
    plain, full = settings.find("github.com/acme/web"), settings.find("github.com/acme/team/x")
    assert plain is not None
    assert full is not None
    assert plain.forge == "github"
    assert plain.hold_seconds == 7.0
    assert plain.webhook_secret_file is not None
    assert (plain.poll_interval_seconds, plain.max_age_seconds) == (None, 30.0)
    assert plain.push is PushPolicy.REFUSE
    assert full.push is PushPolicy.PROXY
    assert (full.poll_interval_seconds, full.max_age_seconds) == (300.0, 3600.0)
    assert full.place is not None
    assert (full.place.unused_seconds, full.place.gone_seconds) == (None, 3600.0)


@given(st.text() | st.from_regex(r"(?:[a-z.@%\\/:?#~ -]|\.\.){0,30}", fullmatch=True))
def test_no_name_leads_out_of_its_place(name: str) -> None:
    found = would_be(name, _ANYTHING.upstreams)
    if found is None:
        return
    assert read_repository_name(name) == name
    assert found.upstream == f"https://git.example:1234/base/{name}.git"
    parts = urlsplit(found.upstream)
    assert (parts.hostname, parts.port, parts.query, parts.fragment) == (
        "git.example",
        1234,
        "",
        "",
    )
    assert not {"", ".", ".."} & set(parts.path.split("/")[1:])


_ANYTHING = loaded(
    "upstreams: [{at: /, from: 'https://git.example:1234/base', repositories: ['**']}]"
)


@pytest.mark.parametrize(
    ("url", "is_admitted"),
    [
        ("https://github.com/acme/new.git", True),
        ("https://github.com/acme/new", True),
        ("https://github.com/acme/secret-new.git", False),
        ("https://github.com/other/new.git", False),
        ("https://github.com/acme/../other/new.git", False),
        ("https://github.com/acme/a/../../other.git", False),
        ("https://github.com/acme.git", False),
        ("https://github.com.evil.example/acme/new.git", False),
        ("http://github.com/acme/new.git", False),
    ],
)
def test_an_upstream_may_move_within_its_place(
    settings: Settings, url: str, is_admitted: bool
) -> None:
    found = settings.find("github.com/acme/web")
    assert found is not None
    assert found.place is not None
    assert found.place.admits_upstream(url) is is_admitted


@pytest.mark.parametrize(
    ("source", "keys", "may_be_private"),
    [
        ("https://git.example", "", False),
        ("https://git.example", "private: true", True),
        ("http://localhost:3000", "", True),
        ("http://git.localhost", "", True),
    ],
)
def test_a_name_may_be_private_where_that_is_said(
    source: str, keys: str, may_be_private: bool
) -> None:
    [one] = loaded(f"upstreams: [{{at: /, from: '{source}', {keys}}}]").upstreams
    assert one.place is not None
    assert one.place.may_be_private is may_be_private


@pytest.mark.parametrize(
    ("entry", "mistake"),
    [
        ("from: 'https://git.example'", "upstreams[0].at: the key is missing"),
        ("at: /x", "upstreams[0].from: the key is missing; write `from: https://github.com/acme/`"),
        ("at: x, from: 'https://git.example'", "upstreams[0].at: `x` must be a path"),
        ("at: /x/../y, from: 'https://git.example'", "upstreams[0].at: the segment `..`"),
        ("at: /metrics, from: 'https://git.example'", "upstreams[0].at: `metrics` is a path of"),
        ("at: /x, from: 'ssh://git.example'", "upstreams[0].from: must be a URL"),
        ("at: /x, from: 'https://u:p@git.example'", "upstreams[0].from: carries a user name"),
        (
            "at: /x, from: 'https://git.example', repositories: []",
            "upstreams[0].repositories: must list",
        ),
        (
            "at: /x, from: 'https://git.example', repositories: [../x]",
            "upstreams[0].repositories[0]: `../x` is no pattern",
        ),
        (
            "at: /x, from: 'https://git.example', upstream: y",
            "upstreams[0].upstream: unknown key `upstream` here",
        ),
        (
            "at: /x, from: 'http://git.example', push: proxy",
            "upstreams[0].from: over plain http everybody on the way could read the passwords",
        ),
        (
            "at: /x, from: 'http://git.example', credentials: {password_file: x}",
            "upstreams[0].from: over plain http everybody on the way could read the password of",
        ),
        (
            "at: /x, from: 'https://git.example', webhook_secret_file: x",
            "upstreams[0].forge: can't be guessed from the host `git.example`",
        ),
        (
            "at: /x, from: 'https://git.example'}, {at: /x/, from: 'https://a.example'",
            "upstreams[1].at: another place is at `/x` too",
        ),
    ],
)
def test_a_mistake_in_a_place_is_told_with_its_position(entry: str, mistake: str) -> None:
    [found] = refused(f"upstreams: [{{{entry}}}]")
    assert found.startswith(f"1: {mistake}")


def test_what_loads_is_valid_by_the_schema() -> None:
    validator = Draft202012Validator(json_schema())
    only_a_place = "upstreams: [{at: /, from: 'https://git.example'}]"
    assert loaded(only_a_place).repositories == {}
    for text in (EXAMPLE, only_a_place):
        assert validator.is_valid(yaml.safe_load(text))
    for keys in ("at: x", "repositories: []", "repositories: [../x]", "private: maybe", "forge: x"):
        entry = {"at": "/", "from": "https://git.example"} | yaml.safe_load(f"{{{keys}}}")
        assert not validator.is_valid({"upstreams": [entry]}), keys


def test_the_list_must_be_one() -> None:
    [found] = refused("upstreams: {at: /x}")
    assert found.startswith("1: upstreams: must be a list, like `[{at: /github.com/acme,")


def test_a_file_that_is_wrong_is_told_with_its_place() -> None:
    entry = "at: /x, from: 'https://git.example', credentials: {password_file: /nowhere/token}"
    problems = check_files(loaded(f"upstreams: [{{{entry}}}]"))
    assert any(one.startswith("upstreams./x.credentials.password_file: ") for one in problems)
