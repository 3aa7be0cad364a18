"""Which of an upstream's refs a repository mirrors: its `refs:` patterns. Pure."""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from mirror.wire.names import RefName

OWN_NAMESPACE: Final = b"refs/git-mirror/"
"""The mirror's own: never taken from an upstream, which may be a mirror itself."""

HIDDEN_NAMESPACES: Final = (
    b"refs/pull/",
    b"refs/merge-requests/",
    b"refs/keep-around/",
    b"refs/pipelines/",
    b"refs/environments/",
    b"refs/remotes/",
    b"refs/tmp/",
)
"""What forges keep for themselves: mirrored only where a pattern names the namespace."""


COMPILED_MAX: Final = 1024
"""Repositories mostly have those of `defaults`."""


class RefPatterns:
    """The `refs:` of a repository: which of the upstream's refs are mirrored."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns = tuple(pattern.encode() for pattern in patterns)
        self._regex = [
            (re.compile(re.escape(pattern).replace(rb"\*", rb".+")), pattern)
            for pattern in self._patterns
        ]

    def prefixes(self) -> list[bytes]:
        """Return what to ask an upstream for: the patterns up to their star."""
        return sorted({pattern.partition(b"*")[0] for pattern in self._patterns})

    def matches(self, name: RefName) -> bool:
        """Tell whether a ref is mirrored."""
        if name.startswith(OWN_NAMESPACE):
            return False
        hidden = next((space for space in HIDDEN_NAMESPACES if name.startswith(space)), None)
        return any(
            regex.fullmatch(name) and (hidden is None or pattern.startswith(hidden))
            for regex, pattern in self._regex
        )


@lru_cache(maxsize=COMPILED_MAX)
def patterns_of(refs: tuple[str, ...]) -> RefPatterns:
    """Compile a repository's patterns once."""
    return RefPatterns(refs)
