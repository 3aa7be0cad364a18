"""What the matrix asks of every client, and what a client is to it.

An operation is compared with what the upstream has, in `checks`; here is only how a client says it.
"""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Protocol


class Operation(StrEnum):
    """A column of the matrix."""

    LIST = "list"
    CLONE = "clone"
    SHALLOW = "depth 1"
    NEWS = "new commit"
    FORCED = "force-push"
    TAG = "tag"
    COMMIT = "commit id"


class Unavailable(Exception):
    """The client is not on this machine; the message says what would bring it."""


class ClientFailed(Exception):
    """The client gave up; the message holds what it said."""


class Client(Protocol):
    """A Git client as the matrix uses it.

    Operations that bring something return the revision which the checks look at, as git spells it
    in the repository at `path`: the upstream's main unless a method says otherwise.
    """

    @property
    def whole(self) -> bool:
        """Whether a full clone brings every branch and tag, not only main."""

    async def version(self) -> str:
        """Return what the client calls its version."""

    async def listing(self, url: str) -> Mapping[str, str]:
        """Return object ids by ref name with HEAD; peeled tags as ``name^{}``, if it looks."""

    async def clone(self, url: str, path: Path) -> str:
        """Clone with the whole history."""

    async def clone_shallow(self, url: str, path: Path) -> str:
        """Clone one commit."""

    async def fetch(self, url: str, path: Path) -> str:
        """Bring what `clone` left at `path` up to date, whether or not main went back."""

    async def fetch_tag(self, url: str, path: Path, tag: str) -> str:
        """Bring a tag to what `clone` left at `path`, and return its revision."""

    async def fetch_commit(self, url: str, path: Path, oid: str) -> str:
        """Bring a commit into a new repository at `path` by its id, and return its revision."""
