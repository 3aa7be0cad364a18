"""What a webhook tells us, whichever forge sent it.

A webhook is a hint: forges drop, repeat and reorder them, so nothing here is taken for the truth
about a ref. It says which repository to look at, and which tip to expect there.
"""

import enum
from dataclasses import dataclass
from typing import Final, TypeAlias

from mirror.wire.names import ObjectId, RefName


class Unknown(enum.Enum):
    """The type of `UNKNOWN`, so that a type checker can tell it from `None`."""

    UNKNOWN = "unknown"


UNKNOWN: Final = Unknown.UNKNOWN
"""A tip the payload does not name: GitHub's `create` and `delete` events carry no object ids."""

Tip: TypeAlias = ObjectId | Unknown | None
"""What a ref points to: an object, something the payload leaves out, or nothing (no such ref)."""


@dataclass(frozen=True, slots=True)
class RefChange:
    """One ref moved: `before` is None where it was created, `after` is None where it was deleted.

    For a tag, GitHub and GitLab send the id the ref holds: the tag object's if it is annotated.
    """

    ref: RefName
    before: Tip
    after: Tip


@dataclass(frozen=True, slots=True)
class Push:
    """Refs of a repository changed.

    Attributes:
        delivery: The forge's id of this event, the same when it is delivered again. Where the forge
            sent none it is `sha256:` and the hash of the body; then two pushes of the same content
            (main forward, back, and forward again) can't be told from one delivered twice.
        repository_urls: Every URL by which the payload names the repository, never empty.
        changes: What changed; empty when the forge did not say, or said more than `CHANGES_MAX`:
            then any ref may have.
        default_branch: What the forge says HEAD points to, as a full ref name.
    """

    delivery: str
    repository_urls: tuple[str, ...]
    changes: tuple[RefChange, ...]
    default_branch: RefName | None


@dataclass(frozen=True, slots=True)
class Ping:
    """The forge tries out a new webhook; it names no repository if it is an organisation's."""

    delivery: str
    repository_urls: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ignored:
    """An event that changes no ref. `kind` is the forge's name for it, `reason` is for people.

    `kind` is the sender's text: good for a log, not for the label of a metric.
    """

    delivery: str
    kind: str
    reason: str


WebhookEvent: TypeAlias = Push | Ping | Ignored
