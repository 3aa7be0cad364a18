"""How the mirror signs in to an upstream, and how it reaches it: as it is written.

Secrets stand in files of their own: a password or token, the private key of a GitHub App, a netrc
file. A file that systemd provides (`LoadCredential=`) is named `$CREDENTIALS_DIRECTORY/NAME`.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Final

from pydantic import ConfigDict, Field

from mirror.config.addresses import is_in_the_clear, read_upstream
from mirror.config.names import PATH, USERNAME
from mirror.config.notation import Notation, count, enumerate_words, shown
from mirror.config.section import DefaultWords, Section

_APP_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def read_app_id(text: str) -> str:
    """Return the number of a GitHub App, or its client id, which GitHub takes as well.

    Raises:
        ValueError: It is neither.
    """
    if not _APP_ID.fullmatch(text):
        raise ValueError(f"{shown(text)} is no app id; write it like `123456` or `Iv23liAbCdEf`")
    return text


APP_ID: Final = Notation(
    "the app's id or client id",
    read_app_id,
    str,
    {
        "type": ["string", "integer"],
        "pattern": f"^{_APP_ID.pattern}$",
        "minimum": 0,
    },
)


def read_api(text: str) -> str:
    """Return the URL of a forge's interface, without its trailing slash.

    Raises:
        ValueError: It is no URL, or one that a key must not be proved to in the clear.
    """
    url = read_upstream(text)
    if is_in_the_clear(url):
        raise ValueError("must be https: over plain http everybody on the way could read the token")
    return url


API: Final = Notation(
    "an https URL",
    read_api,
    str,
    {
        "type": "string",
        "pattern": r"^[Hh][Tt][Tt][Pp][Ss]?://[^@?#\s\\]+$",
        "examples": ["https://github.example.com/api/v3"],
    },
)


def read_proxy(text: str) -> str | None:
    """Return the URL of a proxy, `http://host:port`, or `None` for the word `none`.

    Raises:
        ValueError: It is something else.
    """
    if text == "none":
        return None
    if not text.lower().startswith("http://"):
        raise ValueError(
            "must be a URL like `http://proxy.example.com:3128`; what goes through is encrypted"
            " where the upstream is https"
        )
    try:
        url = read_upstream(text)
    except ValueError as error:
        words = str(error).replace("`credentials:`", "`proxy_credentials:`")
        raise ValueError(words) from None
    if url.count("/") > 2:
        raise ValueError("must end with the port, like `http://proxy.example.com:3128`")
    return url


def _write_proxy(url: str | None) -> str:
    return "none" if url is None else url


PROXY: Final = Notation(
    "an http URL without a path, or `none`",
    read_proxy,
    _write_proxy,
    {
        "type": "string",
        "pattern": r"^[Hh][Tt][Tt][Pp]://[^@?#/\s\\]+/*$|^none$",
        "examples": ["http://proxy.example.com:3128"],
    },
)


class GithubAppDocument(Section):
    """A GitHub App with the repository permissions *Contents* and *Metadata*, both read-only.

    Its tokens are asked for with no more than those, and are renewed ahead of time.
    """

    app_id: Annotated[str, APP_ID] = Field(examples=["123456"])
    """The app's id, or its client id: both stand on its page at GitHub."""

    private_key_file: Annotated[Path, PATH] = Field(examples=["secrets/github-app.pem"])
    """The file that holds the app's private key, as GitHub makes it (PEM)."""

    installation_id: Annotated[
        int | None,
        count(1, 2**63 - 1),
        DefaultWords("found for the repository's owner"),
    ] = None
    """The number of the app's installation for the organisation or user."""

    api: Annotated[
        str | None,
        API,
        DefaultWords("`https://api.github.com`, or `/api/v3` of the upstream's host"),
    ] = None
    """GitHub's interface, where it can't be derived from the upstream."""


FORMS: Final = ("password_file", "github_app", "netrc_file")
"""The ways to sign in; a `credentials` section has exactly one of them."""


class CredentialsDocument(Section):
    """How the mirror signs in to an upstream: HTTP Basic, sent with the first request.

    Exactly one of `password_file`, `github_app` and `netrc_file` says with what.
    """

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": [form]} for form in FORMS]},
    )

    username: Annotated[
        str | None,
        USERNAME,
        DefaultWords("`x-access-token` for GitHub, `oauth2` for GitLab, otherwise `git`"),
    ] = None
    """The user name that goes with `password_file`. Forges that take tokens accept nearly any; a
    GitLab deploy token has one of its own."""

    password_file: Annotated[
        Path | None, PATH, DefaultWords("none"), Field(examples=["secrets/github-token"])
    ] = None
    """The file that holds the password or token, and nothing else. It is read again when it
    changes, also where it is a symbolic link that then leads elsewhere. `$CREDENTIALS_DIRECTORY/x`
    is a credential that systemd loads (`LoadCredential=x:/path`)."""

    github_app: Annotated[GithubAppDocument | None, DefaultWords("none")] = None
    """A GitHub App in the place of a password."""

    netrc_file: Annotated[Path | None, PATH, DefaultWords("none")] = None
    """A netrc file, as curl and git take it: the first `machine` entry for the upstream's host
    counts, or `default`. `machine host:port`, or `machine host port N`, is for that port alone and
    goes first."""


class ProxyCredentialsDocument(Section):
    """How the mirror signs in to the `proxy`: HTTP Basic."""

    username: Annotated[str, USERNAME] = Field(examples=["git-mirror"])
    """The user name."""

    password_file: Annotated[Path, PATH] = Field(examples=["secrets/proxy-password"])
    """The file that holds the password, and nothing else."""


def form_mistakes(written: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Yield the keys of a `credentials` section that don't go together, each with what is wrong."""
    given = [form for form in FORMS if form in written]
    if not given:
        yield (
            FORMS[0],
            (
                "the key is missing; write `password_file: secrets/github-token`, or sign in with"
                " `github_app:` or `netrc_file:`"
            ),
        )
    if len(given) > 1:
        yield (
            given[-1],
            (f"{enumerate_words(given, last='and')} can't stand together; keep one of them"),
        )
    elif given and given[0] != FORMS[0] and "username" in written:
        yield "username", f"belongs to `password_file`; `{given[0]}` says who signs in"
