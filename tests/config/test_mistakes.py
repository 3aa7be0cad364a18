import pytest

from mirror.config import Forge
from tests.config.documents import (
    ONE_REPOSITORY,
    refused,
    repository,
    repository_refused,
)


def test_every_mistake_is_reported_at_once_with_its_line_in_order() -> None:
    mistakes = refused(
        """\
        server: {listen: 8470}
        engine: gti
        data_dir: ~/data
        defaults:
          pol_interval: 30s
          hold: 30
          max_age:
        limits: []
        repositories:
          acme/a.git: {}
          acme/b:
            upstream: ssh://git@github.com/acme/b
            credentials: {usernam: x}
            refs: [refs/heads/*, main, refs/git-mirror/x]
            hold: 1s
            hold: 2s
          acme/c:
            upstream: http://git.example/c
            credentials: {password_file: token}
            webhook_secret_file: webhook
            password: hunter2
        """
    )
    assert [tuple(mistake.split(": ", 2)[:2]) for mistake in mistakes] == [
        ("1", "server.listen"),
        ("2", "engine"),
        ("3", "data_dir"),
        ("5", "defaults.pol_interval"),
        ("6", "defaults.hold"),
        ("7", "defaults.max_age"),
        ("8", "limits"),
        ("10", "repositories.acme/a.git"),
        ("10", "repositories.acme/a.git.upstream"),
        ("12", "repositories.acme/b.upstream"),
        ("13", "repositories.acme/b.credentials.password_file"),
        ("13", "repositories.acme/b.credentials.usernam"),
        ("14", "repositories.acme/b.refs[1]"),
        ("14", "repositories.acme/b.refs[2]"),
        ("16", "repositories.acme/b.hold"),
        ("17", "repositories.acme/c.forge"),
        ("18", "repositories.acme/c.upstream"),
        ("21", "repositories.acme/c.password"),
    ]
    assert "hunter2" not in "".join(mistakes)


def test_a_missing_key_is_reported_on_the_line_of_the_mapping_around_it() -> None:
    assert refused("engine: git\nrepositories:\n  acme/a:\n    hold: 1s\n") == [
        (
            "3: repositories.acme/a.upstream: the key is missing;"
            " write `upstream: https://github.com/acme/gitops-repo.git`"
        )
    ]
    assert refused("# comment\nengine: git\n") == [
        "2: repositories: the key is missing; write `repositories:` and its value"
    ]


def test_a_mistake_behind_an_alias_is_reported_where_it_is_written() -> None:
    mistakes = refused(
        """\
        repositories:
          acme/a: &shared
            upstream: https://github.com/acme/a.git
            hold: soon
          acme/b: *shared
          acme/c: {<<: *shared}
        """
    )
    assert [mistake.split(": ")[:2] for mistake in mistakes] == [
        ["4", f"repositories.acme/{name}.hold"] for name in "abc"
    ]


def test_an_unusable_value_is_reported_once() -> None:
    assert refused(ONE_REPOSITORY + "engine: !shell git\n") == [
        "2: engine: the tag `!shell` is not supported; leave it out"
    ]


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("engin: git", "engin: unknown key `engin`; did you mean `engine`?"),
        ("Engine: git", "Engine: unknown key `Engine`; did you mean `engine`?"),
        ("data-dir: /x", "data-dir: unknown key `data-dir`; did you mean `data_dir`?"),
        ("listen: x", "listen: unknown key `listen` here; it belongs under `server`"),
        (
            "poll_interval: 1s",
            "poll_interval: unknown key `poll_interval` here; it belongs under `defaults`",
        ),
        (
            "upstream: x",
            "upstream: unknown key `upstream` here; it belongs under `repositories.<name>`",
        ),
        (
            "log: {engine: git}",
            "log.engine: unknown key `engine` here; it belongs at the top",
        ),
        (
            "log: {zebra: x}",
            "log.zebra: unknown key `zebra`; the keys here are `format` and `level`",
        ),
        (
            "limits: {refresh_max: 1}",
            "limits.refresh_max: unknown key `refresh_max`; did you mean `refreshes_max`?",
        ),
        (
            "defaults: {poll_interval_seconds: 30}",
            (
                "defaults.poll_interval_seconds: unknown key `poll_interval_seconds`;"
                " did you mean `poll_interval`?"
            ),
        ),
        (
            "defaults: {credentials: {password_file: x, user: y}}",
            "defaults.credentials.user: unknown key `user`; did you mean `username`?",
        ),
    ],
)
def test_an_unknown_key_is_refused_with_the_one_that_was_meant(text: str, mistake: str) -> None:
    assert refused(f"{ONE_REPOSITORY}{text}\n") == [f"2: {mistake}"]


@pytest.mark.parametrize("key", ["password", "token", "Access-Token", "api_key"])
def test_a_password_in_the_file_is_refused_without_being_repeated(key: str) -> None:
    assert repository_refused(f"{key}: hunter2") == [
        (
            f"3: repositories.acme/app.{key}: a secret has no place in this file;"
            " name its file, with `credentials:`"
        )
    ]
    assert repository_refused(f"credentials: {{password_file: x, {key}: hunter2}}") == [
        (
            f"3: repositories.acme/app.credentials.{key}: a secret has no place in this file;"
            " name its file, with `password_file`"
        )
    ]


@pytest.mark.parametrize("key", ["webhook_secret", "secret"])
def test_a_webhook_secret_in_the_file_is_refused_without_being_repeated(key: str) -> None:
    assert repository_refused(f"{key}: hunter2") == [
        (
            f"3: repositories.acme/app.{key}: a secret has no place in this file;"
            " name its file, with `webhook_secret_file`"
        )
    ]


def test_credentials_that_are_a_secret_themselves_are_refused_without_being_repeated() -> None:
    assert repository_refused("credentials: hunter2") == [
        (
            "3: repositories.acme/app.credentials: must be a mapping (`key: value` lines under it),"
            " not a single value"
        )
    ]


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("server:", "server: must be a mapping (`key: value` lines under it), not nothing"),
        (
            "limits: 3",
            "limits: must be a mapping (`key: value` lines under it), not a single value",
        ),
        ("engine:", "engine: has no value; write one, or leave the key out"),
        ("engine: [git]", "engine: must be `auto`, `git` or `dulwich`, not a list"),
        ("engine: {a: b}", "engine: must be `auto`, `git` or `dulwich`, not a mapping"),
        ("engine: no", "engine: `no` is not one of `auto`, `git` or `dulwich`"),
        ("data_dir: ''", "data_dir: is empty; write the path of a file or directory"),
        (
            "limits: {refreshes_max: 0}",
            "limits.refreshes_max: `0` is not a whole number from 1 to 1000",
        ),
        (
            "limits: {request_bytes_max: 64MB}",
            (
                "limits.request_bytes_max: `64MB` is not a size;"
                " write it like `512KiB`, `64MiB`, `20GiB` or `1048576`"
            ),
        ),
        (
            "limits: {upstream_timeout: never}",
            (
                "limits.upstream_timeout: `never` is not a duration;"
                " write it like `30s`, `5m`, `1h30m` or `250ms`"
            ),
        ),
        (
            "defaults: {poll_interval: 0}",
            "defaults.poll_interval: `0` is too short; write at least `100ms`",
        ),
        ("defaults: {hold: 10m}", "defaults.hold: `10m` is too long; write at most `5m`"),
        (
            "defaults: {refs: []}",
            "defaults.refs: must list from 1 to 256 patterns, not 0",
        ),
        (
            f"defaults: {{refs: [{', '.join(['refs/heads/*'] * 257)}]}}",
            "defaults.refs: must list from 1 to 256 patterns, not 257",
        ),
        (
            "defaults: {refs: refs/heads/*}",
            "defaults.refs: must be a list, like `[refs/heads/*]`, not a single value",
        ),
        (
            "defaults: {refs: [{a: b}]}",
            "defaults.refs[0]: must be a full ref name, with at most one `*`, not a mapping",
        ),
        (
            "defaults: {credentials: }",
            "defaults.credentials: has no value; write keys under it, `none`, or leave it out",
        ),
        (
            "defaults: {credentials: {username: x}}",
            (
                "defaults.credentials.password_file: the key is missing;"
                " write `password_file: secrets/github-token`, or sign in with `github_app:` or"
                " `netrc_file:`"
            ),
        ),
    ],
)
def test_a_wrong_value_is_refused_with_what_to_write(text: str, mistake: str) -> None:
    assert refused(f"{ONE_REPOSITORY}{text}\n") == [f"2: {mistake}"]


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("repositories: {}", "must name at least one repository to mirror"),
        ("repositories:", "must be a mapping (`key: value` lines under it), not nothing"),
        ("repositories: [a]", "must be a mapping (`key: value` lines under it), not a list"),
    ],
)
def test_a_file_without_repositories_is_refused(text: str, mistake: str) -> None:
    assert refused(text) == [f"1: repositories: {mistake}"]


def test_a_repository_without_keys_is_refused() -> None:
    assert refused("repositories:\n  acme/app:\n") == [
        "2: repositories.acme/app: must be a mapping (`key: value` lines under it), not nothing"
    ]


def test_a_wrong_name_does_not_hide_what_is_wrong_under_it() -> None:
    mistakes = refused("repositories:\n  '[key]':\n    upstream: https://a.example/\n    hol: 1s\n")
    assert [mistake.split(": ")[:2] for mistake in mistakes] == [
        ["2", "repositories.[key]"],
        ["4", "repositories.[key].hol"],
    ]


def test_credentials_over_plain_http_are_refused() -> None:
    mistake = (
        "3: repositories.acme/app.upstream: over plain http everybody on the way could read the"
        " password of `credentials`; use https, or write `credentials: none`"
    )
    credentials = "credentials: {password_file: token}"
    upstream = "http://github.example/app"
    assert repository_refused(credentials, upstream=upstream) == [mistake]
    assert repository_refused("", defaults=credentials, upstream=upstream) == [mistake]


def test_plain_http_is_taken_without_credentials_or_on_this_machine() -> None:
    credentials = "credentials: {password_file: token}"
    assert repository("", upstream="http://github.example/app").credentials is None
    none = repository("credentials: none", defaults=credentials, upstream="http://git.example/a")
    assert none.credentials is None
    assert repository(credentials, upstream="http://127.0.0.1:3000/app").credentials


def test_a_webhook_secret_needs_a_forge() -> None:
    mistake = (
        "3: repositories.acme/app.forge: can't be guessed from the host `git.example`, and"
        " webhooks need it; write `forge:` with `github`, `gitlab`, `gitea` or `bitbucket`"
    )
    secret = "webhook_secret_file: webhook"
    upstream = "https://git.example/app"
    assert repository_refused(secret, upstream=upstream) == [mistake]
    assert repository_refused("", defaults=secret, upstream=upstream) == [mistake]
    assert repository(f"{secret}, forge: gitea", upstream=upstream).forge is Forge.GITEA
    assert repository("webhook_secret_file: none", defaults=secret, upstream=upstream).forge is None


def test_rules_between_keys_are_looked_at_in_a_repository_with_other_mistakes() -> None:
    mistakes = repository_refused(
        "hold: x, credentials: {user: y}, webhook_secret_file: w",
        defaults="max_age: x",
        upstream="http://git.example/app",
    )
    assert [mistake.split(": ")[1] for mistake in mistakes] == [
        "defaults.max_age",
        "repositories.acme/app.credentials.password_file",
        "repositories.acme/app.upstream",
        "repositories.acme/app.forge",
        "repositories.acme/app.hold",
        "repositories.acme/app.credentials.user",
    ]
