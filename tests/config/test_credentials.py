"""How signing in and reaching an upstream are written, and what is wrong with the files for it."""

from pathlib import Path

import pytest

from mirror.config import (
    CredentialSettings,
    GithubAppSettings,
    NetrcSettings,
    PasswordSettings,
    RouteSettings,
    check_files,
    load,
)
from tests.config.documents import repository, repository_refused

BASE = Path("/etc/git-mirror")
APP = "github_app: {app_id: 123, private_key_file: app.pem}"


@pytest.mark.parametrize(
    ("written", "settings"),
    [
        (
            "password_file: token",
            PasswordSettings(username="x-access-token", password_file=BASE / "token"),
        ),
        (
            "username: gitlab+deploy-token-1, password_file: token",
            PasswordSettings(username="gitlab+deploy-token-1", password_file=BASE / "token"),
        ),
        (APP, GithubAppSettings(app_id="123", private_key_file=BASE / "app.pem")),
        (
            (
                "github_app: {app_id: Iv23liAbC, private_key_file: /run/app.pem,"
                " installation_id: 7, api: https://api.example/v3/}"
            ),
            GithubAppSettings(
                app_id="Iv23liAbC",
                private_key_file=Path("/run/app.pem"),
                installation_id=7,
                api="https://api.example/v3",
            ),
        ),
        (
            "netrc_file: netrc",
            NetrcSettings(netrc_file=BASE / "netrc", username="x-access-token"),
        ),
    ],
)
def test_there_are_several_ways_to_sign_in(written: str, settings: CredentialSettings) -> None:
    keys = f"credentials: {{{written}}}"
    assert repository(keys).credentials == settings
    assert repository("", defaults=keys).credentials == settings


@pytest.mark.parametrize(
    ("written", "mistakes"),
    [
        (
            f"password_file: x, {APP}",
            [
                (
                    "github_app: `password_file` and `github_app` can't stand together; keep one of"
                    " them"
                )
            ],
        ),
        (
            f"netrc_file: x, {APP}, username: y",
            [("netrc_file: `github_app` and `netrc_file` can't stand together; keep one of them")],
        ),
        (
            f"username: y, {APP}",
            ["username: belongs to `password_file`; `github_app` says who signs in"],
        ),
        (
            "github_app: {private_key: hunter2}",
            [
                "github_app.app_id: the key is missing; write `app_id: 123456`",
                (
                    "github_app.private_key_file: the key is missing;"
                    " write `private_key_file: secrets/github-app.pem`"
                ),
                (
                    "github_app.private_key: a key has no place in this file; name its file, with"
                    " `private_key_file`"
                ),
            ],
        ),
        (
            "github_app: {app_id: a b, private_key_file: x, installation_id: none}",
            [
                "github_app.app_id: `a b` is no app id; write it like `123456` or `Iv23liAbCdEf`",
                (
                    "github_app.installation_id: `none` is not a whole number from 1 to"
                    " 9223372036854775807"
                ),
            ],
        ),
        (
            "github_app: {app_id: 1, private_key_file: x, api: http://ghe.example/api/v3}",
            [
                (
                    "github_app.api: must be https: over plain http everybody on the way could read"
                    " the token"
                )
            ],
        ),
    ],
)
def test_ways_that_do_not_go_together_are_refused(written: str, mistakes: list[str]) -> None:
    keys = f"credentials: {{{written}}}"
    place = "repositories.acme/app.credentials"
    assert repository_refused(keys) == [f"3: {place}.{one}" for one in mistakes]
    assert repository_refused("", defaults=keys) == [
        f"1: defaults.credentials.{one}" for one in mistakes
    ]


def test_an_app_is_for_github_alone() -> None:
    keys = f"credentials: {{{APP}}}"
    mistake = (
        "3: repositories.acme/app.credentials: only GitHub knows `github_app`, and the upstream's"
        " forge is `gitlab`; write `password_file`"
    )
    assert repository_refused(keys, upstream="https://gitlab.com/acme/app") == [mistake]
    assert repository_refused(f"{keys}, forge: gitlab", upstream="https://g.example/a") == [mistake]
    assert repository(f"{keys}, forge: github", upstream="https://g.example/a").credentials
    assert repository(keys, upstream="https://g.example/a").credentials
    [mistake] = repository_refused(f"{keys}, forge: [x]", upstream="https://g.example/a")
    assert mistake.startswith("3: repositories.acme/app.forge: must be `github`, ")


def test_an_upstream_may_have_a_route_of_its_own() -> None:
    defaults = "ca_file: ca.pem, proxy: 'http://Proxy.example:3128/',"
    defaults += "proxy_credentials: {username: m, password_file: secret}"
    account = PasswordSettings(username="m", password_file=BASE / "secret")
    route = RouteSettings(
        ca_file=BASE / "ca.pem", proxy="http://proxy.example:3128", proxy_credentials=account
    )
    assert repository("", defaults=defaults).route == route
    none = "ca_file: none, proxy: none, proxy_credentials: none"
    assert repository(none, defaults=defaults).route == RouteSettings()


@pytest.mark.parametrize(
    ("keys", "mistake"),
    [
        (
            "proxy: 'https://proxy.example:3128'",
            (
                "proxy: must be a URL like `http://proxy.example.com:3128`; what goes through is"
                " encrypted where the upstream is https"
            ),
        ),
        (
            "proxy: 'http://me:hunter2@proxy.example:3128'",
            "proxy: carries a user name or password; use `proxy_credentials:` instead",
        ),
        (
            "proxy: 'http://proxy.example:3128/path'",
            "proxy: must end with the port, like `http://proxy.example.com:3128`",
        ),
        (
            "proxy_credentials: {username: a, password_file: b}",
            (
                "proxy_credentials: there is no `proxy` to sign in to; name it, or write"
                " `proxy_credentials: none`"
            ),
        ),
        (
            "proxy: 'http://p.example:1', proxy_credentials: {username: a, password: hunter2}",
            (
                "proxy_credentials.password_file: the key is missing;"
                " write `password_file: secrets/proxy-password`"
            ),
        ),
    ],
)
def test_a_route_that_leads_nowhere_is_refused(keys: str, mistake: str) -> None:
    mistakes = repository_refused(keys)
    assert mistakes[0] == f"3: repositories.acme/app.{mistake}"
    assert "hunter2" not in "".join(mistakes)


def test_a_credential_of_systemd_is_found_where_systemd_put_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = (
        "credentials: {password_file: $CREDENTIALS_DIRECTORY/token},"
        "webhook_secret_file: $CREDENTIALS_DIRECTORY/hook"
    )
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/git-mirror.service")
    found = repository(keys)
    place = Path("/run/credentials/git-mirror.service")
    assert found.credentials == PasswordSettings(
        username="x-access-token", password_file=place / "token"
    )
    assert found.webhook_secret_file == place / "hook"


def problems(directory: Path, keys: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what is wrong with the files of a repository in `directory`, without its path."""
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    file = directory / "mirror.yaml"
    upstream = "upstream: https://git.example:8443/acme/app"
    file.write_text(f"data_dir: .\nrepositories: {{app: {{{upstream}, {keys}}}}}")
    return [one.replace(f"{directory}/", "") for one in check_files(load(file))]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (
            "-----BEGIN CERTIFICATE-----",
            (
                "app.pem holds no private key in PEM form; make one on the app's page at GitHub"
                " (*Private keys*)"
            ),
        ),
        (None, "app.pem does not exist; create it with the secret in it and mode 0600"),
        ("-----BEGIN RSA PRIVATE KEY-----", None),
    ],
)
def test_the_key_of_an_app_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, problem: str | None
) -> None:
    if content is not None:
        (tmp_path / "app.pem").write_text(content)
        (tmp_path / "app.pem").chmod(0o600)
    key = "repositories.app.credentials.github_app.private_key_file"
    expected = [] if problem is None else [f"{key}: {problem}"]
    assert problems(tmp_path, f"credentials: {{{APP}}}", monkeypatch) == expected


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("machine git.example:8443 password x", None),
        (
            "machine git.example:443 password x",
            "netrc has no entry for git.example, and no `default`; add `machine git.example`",
        ),
        ("machine git.example login x", "the entry in line 1 of netrc has no `password`"),
        ("hunter2", "netrc: line 1 has a word where `machine` or `default` is expected"),
    ],
)
def test_a_netrc_file_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, problem: str | None
) -> None:
    (tmp_path / "netrc").write_text(content)
    (tmp_path / "netrc").chmod(0o600)
    key = "repositories.app.credentials.netrc_file"
    expected = [] if problem is None else [f"{key}: {problem}"]
    assert problems(tmp_path, "credentials: {netrc_file: netrc}", monkeypatch) == expected


def test_authorities_and_the_password_of_the_proxy_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ca.pem").write_text("hunter2")
    keys = (
        "ca_file: ca.pem, proxy: 'http://p.example:3128',"
        "proxy_credentials: {username: m, password_file: none-here}"
    )
    assert problems(tmp_path, keys, monkeypatch) == [
        (
            "repositories.app.proxy_credentials.password_file: none-here does not exist; create it"
            " with the secret in it and mode 0600"
        ),
        "repositories.app.ca_file: ca.pem holds no certificate that can be read; it must be PEM",
    ]
    (tmp_path / "ca.pem").unlink()
    assert "ca.pem can't be read: No such file" in problems(tmp_path, keys, monkeypatch)[1]


def test_a_credential_of_systemd_can_be_checked_by_the_unit_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = "credentials: {password_file: $CREDENTIALS_DIRECTORY/token}"
    [problem] = problems(tmp_path, keys, monkeypatch)
    assert "$CREDENTIALS_DIRECTORY/token is there for the unit alone" in problem
    assert "CREDENTIALS_DIRECTORY=" in problem
