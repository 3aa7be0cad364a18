"""Small configurations, loaded or refused."""

from pathlib import Path
from textwrap import dedent

import pytest

from mirror.config import RepositorySettings, Settings, parse
from mirror.errors import ConfigError

SOURCE = Path("/etc/git-mirror/mirror.yaml")

UPSTREAM = "https://github.com/acme/app.git"

ONE_REPOSITORY = "repositories: {acme/app: {upstream: https://github.com/acme/app.git}}\n"

ISSUE_EXAMPLE = """\
server:
  listen: 127.0.0.1:8470
data_dir: /var/lib/git-mirror
engine: auto                   # auto | git | dulwich
defaults:                      # every key may be repeated under a repository
  poll_interval: 30s
  hold: 5s                     # how long a reader waits for a refresh that a webhook announced
  on_stale: serve              # serve | refuse
  max_age: never               # 0s = before every answer
repositories:
  acme/gitops-repo:            # served at /acme/gitops-repo and /acme/gitops-repo.git
    upstream: https://github.com/acme/gitops-repo.git
    forge: github              # github | gitlab | gitea | bitbucket
    credentials: {username: x-access-token, password_file: secrets/github-token}
    webhook_secret_file: secrets/webhook
    refs: [refs/heads/*, refs/tags/*]      # what is mirrored; this is the default
"""


def loaded(text: str) -> Settings:
    return parse(dedent(text).encode(), source=SOURCE)


def refused(text: str) -> list[str]:
    """Return the mistakes found in `text`, each as `LINE: key.path: what`."""
    with pytest.raises(ConfigError) as caught:
        loaded(text)
    lines = str(caught.value).split("\n")
    assert all(line.startswith(f"{SOURCE}:") for line in lines)
    return [line.removeprefix(f"{SOURCE}:") for line in lines]


def repository(keys: str, *, defaults: str = "", upstream: str = UPSTREAM) -> RepositorySettings:
    """Return the one repository of a file, with `keys` (flow style) beside its upstream."""
    return loaded(_document(keys, defaults=defaults, upstream=upstream)).repositories["acme/app"]


def repository_refused(keys: str, *, defaults: str = "", upstream: str = UPSTREAM) -> list[str]:
    """Return the mistakes of `repository(...)`; its `defaults` stand on line 1, it on line 3."""
    return refused(_document(keys, defaults=defaults, upstream=upstream))


def _document(keys: str, *, defaults: str, upstream: str) -> str:
    comma = ", " if keys else ""
    return (
        f"defaults: {{{defaults}}}\n"
        f"repositories:\n  acme/app: {{upstream: '{upstream}'{comma}{keys}}}\n"
    )
