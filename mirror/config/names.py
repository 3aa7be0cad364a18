"""What may be named in the configuration: repositories, relays, refs, files, users.

Pure rules. Each reads one text and returns the value, or raises `ValueError` saying what to write
instead. A message never repeats a text that may hold a secret.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from mirror.config.notation import Notation, shown

# Repositories.

REPOSITORY_NAME_BYTES_MAX: Final = 255
"""NAME_MAX of Linux: the name may become one file name in a log or an archive."""

RESERVED_SEGMENTS: Final = ("webhooks", "healthz", "readyz", "metrics", "status", "status.json")
"""First segments that are the service's own paths."""

_SEGMENT: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


def read_repository_name(text: str) -> str:
    """Return the name of a repository as it stands in URLs: `acme/gitops-repo`.

    Raises:
        ValueError: It could not be a path here or on disk.
    """
    if len(text.encode()) > REPOSITORY_NAME_BYTES_MAX:
        raise ValueError(f"the name is longer than {REPOSITORY_NAME_BYTES_MAX} bytes")
    segments = text.split("/")
    for segment in segments:
        if not segment:
            raise ValueError("the name has an empty segment; write it like `acme/gitops-repo`")
        if segment.endswith((".git", ".lock")):
            raise ValueError(
                f"the segment {shown(segment)} ends in `.git` or `.lock`; leave the ending out"
                " (a repository answers with and without .git)"
            )
        if not _SEGMENT.fullmatch(segment):
            raise ValueError(
                f"the segment {shown(segment)} must be of letters, digits, `.`, `_` and `-`,"
                " and must not begin with `.` or `-`"
            )
    if segments[0] in RESERVED_SEGMENTS:
        raise ValueError(f"`{segments[0]}` is a path of the service itself; choose another name")
    return text


REPOSITORY_NAME: Final = Notation(
    "the repository's path",
    read_repository_name,
    str,
    {
        "type": "string",
        "pattern": rf"^(?!({'|'.join(map(re.escape, RESERVED_SEGMENTS))})(/|$))"
        r"(?!.*\.(git|lock)(/|$))[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*$",
        "maxLength": REPOSITORY_NAME_BYTES_MAX,
    },
)

_RELAY_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


def read_relay_name(text: str) -> str:
    """Return the name of a relay: it stands in logs and metrics.

    Raises:
        ValueError: It is no short word.
    """
    if not _RELAY_NAME.fullmatch(text):
        raise ValueError(
            f"{shown(text)} must be of lower-case letters, digits and inner `-`, at most 63 of them"
        )
    return text


RELAY_NAME: Final = Notation(
    "a short name",
    read_relay_name,
    str,
    {"type": "string", "pattern": f"^{_RELAY_NAME.pattern}$"},
)

_REPOSITORIES: Final = re.compile(r"!?[A-Za-z0-9_*][A-Za-z0-9._*/-]*")


def read_repositories_pattern(text: str) -> str:
    """Return a pattern of names of repositories; one with `!` before it takes them away.

    Raises:
        ValueError: No name could match it.
    """
    if not _REPOSITORIES.fullmatch(text):
        raise ValueError(
            f"{shown(text)} is no pattern of names; write it like `acme/*`, or `!acme/secret-*`"
        )
    return text


REPOSITORIES_PATTERN: Final = Notation(
    "a name in which `*` stands for anything, slashes too; with `!` before it it takes away",
    read_repositories_pattern,
    str,
    {"type": "string", "pattern": f"^{_REPOSITORIES.pattern}$"},
)


def is_named(name: str, patterns: Iterable[str]) -> bool:
    """Tell whether one of `patterns` names a repository, and none with `!` takes it away."""
    found = False
    for pattern in patterns:
        if is_like(name, pattern.removeprefix("!")):
            if pattern.startswith("!"):
                return False
            found = True
    return found


def is_like(text: str, pattern: str) -> bool:
    """Tell whether `text` is as `pattern`, in which `*` stands for anything."""
    return bool(re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), text, re.DOTALL))


# Refs.

RESERVED_REFS: Final = "refs/git-mirror/"
"""Where the mirror keeps refs of its own: old tips, work under way."""

_NOT_IN_REFS: Final = re.compile(
    r"[\x00-\x20\x7f~^:?\[\\]|\.\.|@\{|//|/\.|\.lock(?:/|$)|[./]$"
)  # git-check-ref-format(1)


def read_ref_pattern(text: str) -> str:
    """Return a pattern of ref names: a full name, with at most one `*` in it.

    Raises:
        ValueError: No ref name could match it, or it is not ours to mirror.
    """
    if ":" in text or text.startswith(("+", "^")):
        raise ValueError(
            f"{shown(text)} is a refspec; write the upstream's names alone, like `refs/heads/*`"
        )
    if not text.startswith("refs/"):
        raise ValueError(f"{shown(text)} must be a full name, like `refs/heads/main`")
    if text.count("*") > 1:
        raise ValueError(f"{shown(text)} holds more than one `*`")
    if text.startswith(RESERVED_REFS) or text == RESERVED_REFS.rstrip("/"):
        raise ValueError(f"`{RESERVED_REFS}` is the mirror's own; choose other refs")
    if _NOT_IN_REFS.search(text):
        raise ValueError(f"{shown(text)} can't be a ref name (see git check-ref-format)")
    return text


REF_PATTERN: Final = Notation(
    "a full ref name, with at most one `*`",
    read_ref_pattern,
    str,
    {
        "type": "string",
        "pattern": r"^refs/(?!git-mirror(/|$))[^*\s~^:?\[\\]*\*?[^*\s~^:?\[\\]*$",
        "examples": ["refs/heads/*", "refs/heads/main", "refs/heads/release-*", "refs/tags/*"],
    },
)

# Files and credentials.

_LOOKS_LIKE_A_TOKEN: Final = re.compile(r"gh[a-z]_\w|github_pat_|glpat-|gloas-")


def read_path(text: str) -> Path:
    """Return a path, still relative if it was written so.

    Raises:
        ValueError: It is empty, begins with `~`, or is a token rather than a path.
    """
    if not text:
        raise ValueError("is empty; write the path of a file or directory")
    if text.startswith("~"):
        raise ValueError("`~` is not expanded; write the whole path")
    if _LOOKS_LIKE_A_TOKEN.match(text):
        raise ValueError("is a token, not a path; put the token in a file and name that here")
    return Path(text)


PATH: Final = Notation(
    "a path, absolute or relative to this file's directory",
    read_path,
    str,
    {"type": "string", "minLength": 1, "pattern": "^[^~]"},
    Path,
)


def read_path_or_none(text: str) -> Path | None:
    """Return a path, or `None` for the word `none`.

    Raises:
        ValueError: As `read_path`.
    """
    return None if text == "none" else read_path(text)


PATH_OR_NONE: Final = Notation(
    f"{PATH.words}, or `none`",
    read_path_or_none,
    lambda path: "none" if path is None else str(path),
    PATH.schema,
    Path,
)


def read_username(text: str) -> str:
    """Return a user name for HTTP Basic authentication.

    Raises:
        ValueError: It is empty or holds a colon, which ends the name (RFC 7617).
    """
    if not text or ":" in text:
        raise ValueError("must not be empty and must not hold a colon; the password goes elsewhere")
    return text


USERNAME: Final = Notation(
    "a user name", read_username, str, {"type": "string", "pattern": "^[^:]+$"}
)
