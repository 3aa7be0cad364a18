"""Places upstream that a whole path stands for: which names are below them, and where those lead.

Pure rules. A name that a reader asks for becomes an upstream's URL here and nowhere else: by the
rules of repository names it holds nothing but letters, digits, `.`, `_`, `-` and `/`, no segment
begins with a dot, and so it can neither leave the place nor name another host.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Final
from urllib.parse import quote, urlsplit

from pydantic import AfterValidator, Field

from mirror.config.addresses import UPSTREAM, is_own_machine_name, read_upstream
from mirror.config.names import read_repository_name
from mirror.config.notation import Notation, duration, duration_or_never, shown, switch
from mirror.config.section import Section

PATTERNS_MAX: Final = 64
"""Patterns of a place; each costs a look at every name that is asked for."""

PLACES_MAX: Final = 256

NAME_BYTES_MAX: Final = 220
"""A name as one file name (`%2F` for a slash), with room for what is put behind it."""


def read_place(text: str) -> str:
    """Return the path that stands for a place, without slashes at its ends; "" for all of it.

    Raises:
        ValueError: Names could not begin with it.
    """
    if not text.startswith("/"):
        raise ValueError(f"{shown(text)} must be a path, like `/github.com/acme` or `/`")
    name = text.strip("/")
    return read_repository_name(name) if name else ""


PLACE: Final = Notation(
    "a path, like `/github.com/acme`, or `/`",
    read_place,
    lambda at: f"/{at}",
    {"type": "string", "pattern": r"^/([A-Za-z0-9_][A-Za-z0-9._/-]*)?$"},
)

_PATTERN: Final = re.compile(r"!?[A-Za-z0-9_*][A-Za-z0-9._*-]*(/[A-Za-z0-9_*][A-Za-z0-9._*-]*)*")


def read_names_pattern(text: str) -> str:
    """Return a pattern of the names below a place.

    Raises:
        ValueError: No name could match it.
    """
    if not _PATTERN.fullmatch(text) or "***" in text:
        raise ValueError(
            f"{shown(text)} is no pattern of names; write it like `*`, `team/*`, `**` (deeper"
            " groups too) or `!secret-*`"
        )
    return text


NAMES_PATTERN: Final = Notation(
    "a name in which `*` stands for anything but a slash, `**` for slashes too; with `!` before it"
    " it takes away",
    read_names_pattern,
    str,
    {"type": "string", "pattern": f"^{_PATTERN.pattern}$"},
)


def _check_names(patterns: tuple[str, ...]) -> tuple[str, ...]:
    if not 0 < len(patterns) <= PATTERNS_MAX:
        raise ValueError(f"must list from 1 to {PATTERNS_MAX} patterns, not {len(patterns)}")
    return patterns


class PlaceKeys(Section):
    """The keys that tell where a place is, and which repositories there may be mirrored."""

    at: Annotated[str, PLACE] = Field(examples=["/github.com/acme"])
    """The path that stands for the place, `/` for all that is not configured. No two may have the
    same."""

    source: Annotated[str, UPSTREAM] = Field(alias="from", examples=["https://github.com/acme/"])
    """The place: the beginning of the upstreams' URLs. What is below `at` is put behind it, and
    `.git` behind that. No other host is ever asked; redirects are followed within the place."""

    repositories: Annotated[
        tuple[Annotated[str, NAMES_PATTERN], ...],
        AfterValidator(_check_names),
        Field(json_schema_extra={"minItems": 1, "maxItems": PATTERNS_MAX}),
    ] = ("*",)
    """Which repositories below the place may be mirrored: each that a pattern names and none with
    `!` takes away."""

    is_private: Annotated[bool, switch()] = Field(default=False, alias="private")
    """Whether the host's name may lead to addresses of a private network, or of this machine.
    Otherwise such an address is connected to only where `from` is one itself; what the name leads
    to is looked at with each connection."""

    unused_seconds: Annotated[float | None, duration_or_never("1m", "3650d")] = Field(
        default=30 * 86_400.0, alias="unused"
    )
    """What nobody has read for so long is removed. Within `limits` it may have to go earlier."""

    gone_seconds: Annotated[float, duration("0s", "30d")] = Field(default=600.0, alias="gone_after")
    """What the upstream says is not there (404; without `credentials` also 401) is removed, when it
    says so at the beginning and at the end of this time, and never says otherwise meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A place upstream, and the path here that stands for it.

    Attributes:
        at: The path, without slashes at its ends; "" for every path.
        url: The place, without a slash at its end.
        patterns: Of the names below it.
        is_private: The host's name may lead to addresses of a private network.
        unused_seconds: What nobody has read for so long is removed; `None` for never.
        gone_seconds: What the upstream denies for so long is removed.
    """

    at: str
    url: str
    patterns: tuple[str, ...]
    is_private: bool
    unused_seconds: float | None
    gone_seconds: float

    def rest_of(self, name: str) -> str | None:
        """Return what of a repository's name is below `at`; `None` where it is elsewhere."""
        if not self.at:
            return name
        rest = name.removeprefix(f"{self.at}/")
        return rest if rest != name else None

    def admits(self, rest: str) -> bool:
        """Tell whether a name below the place is one that may be mirrored."""
        if any(_compiled(one[1:]).fullmatch(rest) for one in self.patterns if one[0] == "!"):
            return False
        return any(_compiled(one).fullmatch(rest) for one in self.patterns if one[0] != "!")

    def upstream_of(self, rest: str) -> str:
        """Return the upstream of a name below the place."""
        return f"{self.url}/{rest}.git"

    def admits_upstream(self, url: str) -> bool:
        """Tell whether a URL, which an upstream redirects to, is of a name that may be mirrored."""
        rest = url.removeprefix(f"{self.url}/").removesuffix(".git")
        if rest == url.removesuffix(".git") or not _is_name(rest):
            return False
        return self.admits(rest)

    @classmethod
    def of(cls, keys: PlaceKeys) -> "Place":
        """Return the place that `keys` describe."""
        return cls(
            at=keys.at,
            url=keys.source,
            patterns=keys.repositories,
            is_private=keys.is_private,
            unused_seconds=keys.unused_seconds,
            gone_seconds=keys.gone_seconds,
        )

    @property
    def may_be_private(self) -> bool:
        """Whether the host's name may lead to an address that is not public."""
        return self.is_private or is_own_machine_name(urlsplit(self.url).hostname or "")


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*|\*)", pattern)
    stars = {"**": ".*", "*": "[^/]*"}
    return re.compile("".join(stars.get(part, re.escape(part)) for part in parts))


def _is_name(text: str) -> bool:
    try:
        read_repository_name(text)
    except ValueError:
        return False
    return True


def find_place(name: str, places: Iterable[Place]) -> Place | None:
    """Return the place that a repository of that name is below; `None` where there is none.

    The nearest place decides alone: what it does not admit, no other does.
    """
    if not _is_name(name) or len(quote(name, safe="")) > NAME_BYTES_MAX:
        return None
    around = [one for one in places if one.rest_of(name)]
    if not around:
        return None
    nearest = max(around, key=lambda one: len(one.at))
    rest = nearest.rest_of(name) or ""
    if not nearest.admits(rest):
        return None
    # What the rules above guarantee, once more, for nothing else stands in the way of a request.
    return nearest if _leads_below(nearest, nearest.upstream_of(rest)) else None


def _leads_below(place: Place, upstream: str) -> bool:
    try:
        upstream = read_upstream(upstream)
    except ValueError:
        return False
    here, there = urlsplit(place.url), urlsplit(upstream)
    return (here.scheme, here.netloc) == (there.scheme, there.netloc) and there.path.startswith(
        f"{here.path}/"
    )
