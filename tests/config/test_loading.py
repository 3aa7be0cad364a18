from pathlib import Path

import pytest

from mirror.config import (
    EngineChoice,
    Forge,
    LimitSettings,
    LogFormat,
    LogLevel,
    OnStale,
    PasswordSettings,
    guess_forge,
    load,
)
from mirror.config.document import DOCUMENT_BYTES_MAX
from mirror.errors import ConfigError
from tests.config.documents import (
    ISSUE_EXAMPLE,
    ONE_REPOSITORY,
    SOURCE,
    loaded,
    repository,
)


def test_the_documented_example_is_read_whole() -> None:
    settings = loaded(ISSUE_EXAMPLE)
    assert (settings.server.listen.host, settings.server.listen.port) == ("127.0.0.1", 8470)
    assert settings.data_dir == Path("/var/lib/git-mirror")
    assert settings.engine is EngineChoice.AUTO
    [found] = settings.repositories.values()
    assert found.name == "acme/gitops-repo"
    assert found.upstream == "https://github.com/acme/gitops-repo.git"
    assert found.forge is Forge.GITHUB
    assert found.credentials == PasswordSettings(
        username="x-access-token", password_file=Path("/etc/git-mirror/secrets/github-token")
    )
    assert found.webhook_secret_file == Path("/etc/git-mirror/secrets/webhook")
    assert found.refs == ("refs/heads/*", "refs/tags/*")
    assert found.poll_interval_seconds == 30.0
    assert found.hold_seconds == 5.0
    assert found.on_stale is OnStale.SERVE
    assert found.max_age_seconds is None


def test_one_repository_with_its_upstream_is_enough() -> None:
    settings = loaded(ONE_REPOSITORY)
    assert str(settings.server.listen) == "127.0.0.1:8470"
    assert settings.data_dir == Path("/var/lib/git-mirror")
    assert settings.engine is EngineChoice.AUTO
    assert settings.limits == LimitSettings()
    assert settings.limits.refreshes_max == 8
    assert settings.limits.pack_builds_max == 4
    assert settings.limits.pack_builds_queued_max == 1000
    assert settings.limits.request_bytes_max == 64 * 1024**2
    assert settings.limits.pack_bytes_max == 20 * 1024**3
    assert settings.limits.lfs_cache_bytes_max == 10 * 1024**3
    assert settings.limits.lfs_object_bytes_max == 5 * 1024**3
    assert settings.limits.lfs_downloads_max == 8
    assert settings.limits.upstream_timeout_seconds == 60.0
    assert settings.limits.refresh_timeout_seconds == 3600.0
    assert settings.log.format is LogFormat.AUTO
    assert settings.log.level is LogLevel.INFO
    found = settings.repositories["acme/app"]
    assert found.forge is Forge.GITHUB
    assert found.credentials is None
    assert found.webhook_secret_file is None
    assert found.refs == ("refs/heads/*", "refs/tags/*")
    assert found.poll_interval_seconds == 30.0
    assert found.hold_seconds == 5.0
    assert found.on_stale is OnStale.SERVE
    assert found.max_age_seconds is None
    assert found.lfs
    assert found.inherited == frozenset()


def test_every_key_of_the_sections_is_read() -> None:
    settings = loaded(
        ONE_REPOSITORY
        + """
engine: dulwich
server: {listen: "[::1]:0", fast_lane: false}
limits:
  refreshes_max: 2
  pack_builds_max: 1
  pack_builds_queued_max: 10
  request_bytes_max: 512KiB
  pack_bytes_max: 1048576
  lfs_cache_bytes_max: 1TiB
  lfs_object_bytes_max: 2GiB
  lfs_downloads_max: 3
  upstream_timeout: 500ms
  refresh_timeout: 1h30m
log: {format: json, level: debug}
"""
    )
    assert settings.engine is EngineChoice.DULWICH
    assert (settings.server.listen.host, settings.server.listen.port) == ("::1", 0)
    assert not settings.server.fast_lane
    assert settings.limits == LimitSettings(
        refreshes_max=2,
        pack_builds_max=1,
        pack_builds_queued_max=10,
        request_bytes_max=512 * 1024,
        pack_bytes_max=1024**2,
        lfs_cache_bytes_max=1024**4,
        lfs_object_bytes_max=2 * 1024**3,
        lfs_downloads_max=3,
        upstream_timeout=0.5,
        refresh_timeout=5400.0,
    )
    assert (settings.log.format, settings.log.level) == (LogFormat.JSON, LogLevel.DEBUG)


def test_a_default_applies_unless_the_repository_repeats_the_key() -> None:
    settings = loaded(
        """
        defaults:
          poll_interval: 1m
          hold: 0
          on_stale: refuse
          max_age: 10s
          refs: [refs/heads/main]
          lfs: false
          credentials: {username: bot, password_file: token}
          webhook_secret_file: webhook
          bundle_interval: 1d
          bundle_bytes_min: 1MiB
        repositories:
          acme/a:
            upstream: https://github.com/acme/a.git
          acme/b:
            upstream: https://github.com/acme/b.git
            poll_interval: never
            hold: 1s
            on_stale: serve
            max_age: never
            refs: [refs/*]
            lfs: true
            credentials: {password_file: other-token}
            webhook_secret_file: other-webhook
            bundle_interval: never
            bundle_bytes_min: 0
        """
    )
    a, b = settings.repositories.values()
    assert (a.poll_interval_seconds, a.hold_seconds, a.max_age_seconds) == (60.0, 0.0, 10.0)
    assert (a.lfs, b.lfs) == (False, True)
    assert (a.on_stale, a.refs) == (OnStale.REFUSE, ("refs/heads/main",))
    assert isinstance(a.credentials, PasswordSettings)
    assert a.credentials.username == "bot"
    assert a.webhook_secret_file == Path("/etc/git-mirror/webhook")
    assert (b.poll_interval_seconds, b.hold_seconds, b.max_age_seconds) == (None, 1.0, None)
    assert (b.on_stale, b.refs) == (OnStale.SERVE, ("refs/*",))
    assert isinstance(b.credentials, PasswordSettings)
    assert b.credentials.username == "x-access-token"
    assert b.credentials.password_file == Path("/etc/git-mirror/other-token")
    assert b.webhook_secret_file == Path("/etc/git-mirror/other-webhook")
    assert (a.bundle_interval_seconds, a.bundle_bytes_min) == (86_400.0, 1024**2)
    assert (b.bundle_interval_seconds, b.bundle_bytes_min) == (None, 0)


def test_a_repository_knows_which_keys_it_took_from_the_defaults() -> None:
    found = repository("hold: 1s", defaults="hold: 2s, poll_interval: 1m, on_stale: refuse")
    assert found.inherited == {"poll_interval", "on_stale"}


def test_none_undoes_the_credentials_and_the_secret_of_the_defaults() -> None:
    found = repository(
        "credentials: none, webhook_secret_file: none",
        defaults="credentials: {password_file: token}, webhook_secret_file: webhook",
    )
    assert found.credentials is None
    assert found.webhook_secret_file is None


def test_a_relative_path_is_relative_to_the_file() -> None:
    settings = loaded(ONE_REPOSITORY + "data_dir: data\n")
    assert settings.source == SOURCE
    assert settings.data_dir == Path("/etc/git-mirror/data")


def test_a_file_named_relatively_still_gives_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mirror.yaml").write_text(ONE_REPOSITORY + "data_dir: data\n")
    monkeypatch.chdir(tmp_path)
    settings = load(Path("mirror.yaml"))
    assert settings.source == tmp_path / "mirror.yaml"
    assert settings.data_dir == tmp_path / "data"


def test_settings_can_not_be_changed() -> None:
    settings = loaded(ONE_REPOSITORY)
    with pytest.raises(AttributeError):
        settings.engine = EngineChoice.GIT  # type: ignore[misc]
    with pytest.raises(TypeError):
        settings.repositories["x"] = settings.repositories["acme/app"]  # type: ignore[index]


def test_names_that_differ_in_case_are_different_repositories() -> None:
    settings = loaded(
        "repositories:\n  app: {upstream: https://a.example/x}\n"
        "  App: {upstream: https://a.example/x}\n"
    )
    assert list(settings.repositories) == ["app", "App"]


def test_a_repetition_in_the_refs_is_dropped() -> None:
    found = repository("refs: [refs/tags/*, refs/heads/*, refs/tags/*]")
    assert found.refs == ("refs/tags/*", "refs/heads/*")


def test_repositories_may_share_keys_with_an_anchor_and_merge_keys() -> None:
    settings = loaded(
        """
        repositories:
          acme/a: &shared
            upstream: https://github.com/acme/a.git
            hold: 1s
            credentials: {password_file: token}
          acme/b:
            <<: *shared
            upstream: https://github.com/acme/b.git
        """
    )
    b = settings.repositories["acme/b"]
    assert b.upstream == "https://github.com/acme/b.git"
    assert b.hold_seconds == 1.0
    assert b.credentials is not None


@pytest.mark.parametrize(
    ("host", "forge"),
    [
        ("github.com", Forge.GITHUB),
        ("github.example.com", Forge.GITHUB),
        ("code.github.example.com", Forge.GITHUB),
        ("gitlab.com", Forge.GITLAB),
        ("my-gitlab.example.com", Forge.GITLAB),
        ("gitea.example.com", Forge.GITEA),
        ("forgejo.example.com", Forge.GITEA),
        ("codeberg.org", Forge.GITEA),
        ("bitbucket.org", Forge.BITBUCKET),
        ("git.example.com", None),
        ("127.0.0.1", None),
    ],
)
def test_the_forge_is_guessed_from_the_host(host: str, forge: Forge | None) -> None:
    assert guess_forge(host) is forge
    assert repository("", upstream=f"https://{host}/acme/app").forge is forge


def test_a_forge_that_is_written_is_not_guessed() -> None:
    assert repository("forge: gitea", upstream="https://github.com/x").forge is Forge.GITEA


@pytest.mark.parametrize(
    ("host", "username"),
    [
        ("github.com", "x-access-token"),
        ("gitlab.com", "oauth2"),
        ("codeberg.org", "git"),
        ("bitbucket.org", "git"),
        ("git.example.com", "git"),
    ],
)
def test_the_user_name_follows_the_forge_when_left_out(host: str, username: str) -> None:
    found = repository("credentials: {password_file: token}", upstream=f"https://{host}/x")
    assert isinstance(found.credentials, PasswordSettings)
    assert found.credentials.username == username


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mirror.yaml"
    path.write_text(ONE_REPOSITORY)
    assert list(load(path).repositories) == ["acme/app"]


def test_a_missing_file_is_refused_with_how_to_name_one(tmp_path: Path) -> None:
    path = tmp_path / "mirror.yaml"
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value) == (
        f"{path}: there is no such file; name one with --config or GIT_MIRROR_CONFIG"
    )


@pytest.mark.parametrize(("name", "reason"), [("", "Is a directory"), ("a\0b", "null byte")])
def test_a_file_that_can_not_be_read_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"the file can't be read: .*{reason}"):
        load(tmp_path / name)


def test_a_file_without_end_is_refused() -> None:
    with pytest.raises(ConfigError, match="/dev/zero:1: the file is longer than 4 MiB"):
        load(Path("/dev/zero"))


def test_many_thousand_repositories_fit_into_a_file() -> None:
    entry = "  acme/app-{}:\n    upstream: https://github.com/acme/app-{}.git\n"
    text = "repositories:\n" + "".join(entry.format(i, i) for i in range(20_000))
    assert len(text) < DOCUMENT_BYTES_MAX
    assert len(loaded(text).repositories) == 20_000
