from pathlib import Path

import pytest

from mirror.config import EventMode, RelayKind, RelaySettings, check_files
from mirror.config.relays import RELAYS_MAX
from tests.config.documents import ONE_REPOSITORY, loaded, refused
from tests.config.test_reference import is_valid

ARGO = "type: argocd, url: https://argocd.example/api/webhook, secret_file: s"
SERVER = "server: {public_url: https://git.example.com/mirror/}\n"


def relay(keys: str, *, server: str = SERVER) -> RelaySettings:
    return loaded(f"{server}{ONE_REPOSITORY}relays: {{one: {{{keys}}}}}\n").relays["one"]


def relay_refused(keys: str, *, server: str = SERVER) -> list[str]:
    """Return the mistakes, without their line."""
    found = refused(f"{server}{ONE_REPOSITORY}relays: {{one: {{{keys}}}}}\n")
    return [line.partition(": ")[2] for line in found]


def test_a_relay_takes_the_public_url_of_the_server_and_paths_beside_the_file() -> None:
    assert relay(ARGO) == RelaySettings(
        name="one",
        kind=RelayKind.ARGOCD,
        url="https://argocd.example/api/webhook",
        secret_file=Path("/etc/git-mirror/s"),
        public_urls=("https://git.example.com/mirror",),
    )


def test_every_key_of_a_relay_is_read() -> None:
    found = relay(
        "type: webhook, url: http://hooks:8080/x/, secret_file: /run/s, timeout: 3s, mode: binary,"
        " repositories: ['acme/*', '!acme/secret'], ca_file: ca.pem,"
        " public_urls: [https://a.example, http://b.example:81/]"
    )
    assert found == RelaySettings(
        name="one",
        kind=RelayKind.WEBHOOK,
        url="http://hooks:8080/x/",
        secret_file=Path("/run/s"),
        ca_file=Path("/etc/git-mirror/ca.pem"),
        repositories=("acme/*", "!acme/secret"),
        public_urls=("https://a.example", "http://b.example:81"),
        timeout_seconds=3.0,
        mode=EventMode.BINARY,
    )


@pytest.mark.parametrize(
    ("keys", "is_right"),
    [
        (ARGO, True),
        (f"{ARGO}, timeout: 3s, mode: structured, repositories: ['acme/*', '!acme/x']", True),
        (f"{ARGO}, ca_file: none, public_urls: [https://a.example/git]", True),
        (f"{ARGO}, repositories: []", False),
        (f"{ARGO}, public_urls: [git.example.com]", False),
        ("type: argocd, secret_file: s", False),
        (f"{ARGO}, secret: hunter2", False),
    ],
)
def test_the_schema_knows_relays(keys: str, is_right: bool) -> None:
    text = f"{SERVER}{ONE_REPOSITORY}relays: {{one: {{{keys}}}}}\n"
    assert is_valid(text) == is_right


def test_there_need_not_be_relays() -> None:
    assert loaded(ONE_REPOSITORY).relays == {}


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["*"], {"acme/app", "acme/secret", "other/app"}),
        (["acme/*"], {"acme/app", "acme/secret"}),
        (["*", "!*/secret"], {"acme/app", "other/app"}),
        (["!acme/secret", "acme/*"], {"acme/app"}),
        (["acme/app", "other/app"], {"acme/app", "other/app"}),
        (["acme/a.p"], set()),
        (["!other/*"], set()),
    ],
)
def test_patterns_name_repositories(patterns: list[str], names: set[str]) -> None:
    one = RelaySettings(
        name="x",
        kind=RelayKind.FLUX,
        url="https://x/y",
        secret_file=Path("/s"),
        repositories=tuple(patterns),
    )
    assert {name for name in ("acme/app", "acme/secret", "other/app") if one.tells(name)} == names


NO_URL = (
    "the event must name this service as its readers do: set `server.public_url`, or list the URLs"
    " here"
)


@pytest.mark.parametrize("kind", ["argocd", "fleet", "webhook"])
@pytest.mark.parametrize("more", ["", ", public_urls: []"])
def test_who_matches_urls_must_be_told_ours(kind: str, more: str) -> None:
    keys = f"type: {kind}, url: https://x.example/y, secret_file: s{more}"
    server = SERVER if more else ""
    assert relay_refused(keys, server=server) == [f"relays.one.public_urls: {NO_URL}"]


def test_flux_matches_no_urls() -> None:
    keys = "type: flux, url: https://x.example/hook/1, secret_file: s"
    assert relay(keys, server="").public_urls == ()


@pytest.mark.parametrize(
    ("keys", "mistakes"),
    [
        (
            "type: argo, url: ftp://x, secret: hunter2",
            [
                (
                    "relays.one.type: `argo` is not one of `argocd`, `fleet`, `flux` or `webhook`;"
                    " did you mean `argocd`?"
                ),
                "relays.one.url: must begin with `https://` or `http://`",
                (
                    "relays.one.secret_file: the key is missing; write"
                    " `secret_file: secrets/argocd-webhook`"
                ),
                (
                    "relays.one.secret: a secret has no place in this file; name its file, with"
                    " `secret_file`"
                ),
            ],
        ),
        (
            f"{ARGO}, mode: binary",
            ["relays.one.mode: is for `type: webhook`; argocd has no choice, leave it out"],
        ),
        (
            "type: argocd, url: https://argocd.example, secret_file: s",
            [
                "relays.one.url: has no path; write the whole address, which ends in /api/webhook",
            ],
        ),
        (
            "type: flux, url: https://flux.example/, secret_file: s",
            [
                (
                    "relays.one.url: has no path; write the whole address, which ends in /hook/...,"
                    " the Receiver's webhookPath"
                ),
            ],
        ),
        (
            "type: fleet, url: https://user:hunter2@fleet.example, secret_file: s",
            ["relays.one.url: carries a user name or password; use `secret_file:` instead"],
        ),
        (
            f"{ARGO}, repositories: [other/*]",
            ["relays.one.repositories: names none of the `repositories`, so nothing would be told"],
        ),
        (
            f"{ARGO}, repositories: 'acme/*', public_urls: https://x",
            [
                "relays.one.repositories: must be a list, like `[*]`, not a single value",
                (
                    "relays.one.public_urls: must be a list, like `[https://git-mirror.example.com]`,"
                    " not a single value"
                ),
            ],
        ),
        (
            f"{ARGO}, repositories: ['a b']",
            [
                (
                    "relays.one.repositories[0]: `a b` is no pattern of names; write it like"
                    " `acme/*`, or `!acme/secret-*`"
                ),
                (
                    "relays.one.repositories: names none of the `repositories`, so nothing would be"
                    " told"
                ),
            ],
        ),
        (
            f"{ARGO}, public_urls: [git.example.com]",
            ["relays.one.public_urls[0]: must begin with `https://` or `http://`"],
        ),
        (
            f"{ARGO}, public_urls: [{', '.join(f'https://u{n}' for n in range(9))}]",
            ["relays.one.public_urls: more than 8 URLs; each is an event of its own"],
        ),
        (
            f"{ARGO}, hold: 5s",
            ["relays.one.hold: unknown key `hold` here; it belongs under `defaults`"],
        ),
    ],
)
def test_mistakes_of_a_relay_say_what_to_write(keys: str, mistakes: list[str]) -> None:
    found = relay_refused(keys)
    assert sorted(found) == sorted(mistakes)
    assert "hunter2" not in str(found)


@pytest.mark.parametrize("name", ["Argo", "a_b", "-a", "a" * 64, "ü"])
def test_names_of_relays_are_short_words(name: str) -> None:
    found = refused(f"{SERVER}{ONE_REPOSITORY}relays: {{'{name}': {{{ARGO}}}}}\n")
    assert found[0].startswith(f"3: relays.{name}: `{name[:60]}")
    assert "must be of lower-case letters" in found[0]


def test_there_is_a_limit_to_relays() -> None:
    many = ", ".join(f"r{number}: {{{ARGO}}}" for number in range(RELAYS_MAX + 1))
    (mistake,) = refused(f"{SERVER}{ONE_REPOSITORY}relays: {{{many}}}\n")
    assert "more than 32 receivers" in mistake


def test_a_check_looks_at_the_files_of_relays(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    keys = f"{ARGO.replace('secret_file: s', f'secret_file: {tmp_path}/secret')}, ca_file:"
    text = f"data_dir: {tmp_path}\n{SERVER}{ONE_REPOSITORY}"
    bad = loaded(f"{text}relays: {{one: {{{keys} {tmp_path}/ca.pem}}}}\n")
    assert check_files(bad) == [
        (
            f"relays.one.secret_file: {tmp_path}/secret does not exist; create it with the secret"
            " in it and mode 0600"
        ),
        (
            f"relays.one.ca_file: {tmp_path}/ca.pem holds no certificate that can be read; it must"
            " be PEM"
        ),
    ]
    (tmp_path / "secret").write_text("x")
    (tmp_path / "secret").chmod(0o600)
    missing = loaded(f"{text}relays: {{one: {{{keys} {tmp_path}/nothing}}}}\n")
    assert check_files(missing) == [
        f"relays.one.ca_file: {tmp_path}/nothing can't be read: No such file or directory"
    ]
