"""What the main process and a worker say to each other.

Both ends are the same code, started together, so there is no version and nothing optional. What a
question is answered with is a `Reply`; those marked "told" have no answer.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import ConfigDict, Field

from mirror.refresh.refresher import Trigger
from mirror.wire.bundles import BundleList
from mirror.wire.lfs import Pointer
from mirror.wire.names import ObjectId, Ref, RefName


@dataclass(frozen=True, slots=True)
class SnapshotNews:
    """How the next snapshot differs from one that a worker has.

    Attributes:
        number: Of the next snapshot.
        base: Of the one it is made from; `None` when it is to be read from disk.
        changed: The refs that are new or different.
        removed: The names of those that are gone.
        head_target: The branch that HEAD names.
        detached_head: What a detached HEAD holds.
    """

    number: int
    base: int | None = None
    changed: tuple[Ref, ...] = ()
    removed: tuple[RefName, ...] = ()
    head_target: RefName | None = None
    detached_head: ObjectId | None = None


@dataclass(frozen=True, slots=True)
class FreshnessState:
    """The part of `Freshness` that readers are judged by; the attributes are the same."""

    announced: int
    satisfied: int
    failed: int
    confirmed_at: float | None
    failures: int
    ask_again_at: float
    not_before: float


@dataclass(frozen=True, slots=True)
class LastState:
    """`LastRefresh`; the attributes are the same."""

    succeeded_at: float | None
    failed_at: float | None
    error: str | None
    changed_at: float | None


@dataclass(frozen=True, slots=True)
class ChangeState:
    """`RefChange`, with its tips as text: an id, "" for none, or "?" for not known."""

    ref: RefName
    before: str
    after: str


# From the main process.


@dataclass(frozen=True, slots=True)
class Setup:
    """Told first: what to serve.

    Attributes:
        started: The configuration as it was read from `source` when the service started.
        content: The one that applies now, but for what needs a restart.
    """

    started: bytes
    content: bytes
    source: str
    number: int
    workers: int
    kind: Literal["setup"] = "setup"


@dataclass(frozen=True, slots=True)
class Prepare:
    """Asked: read another configuration, so that the change for it takes no time."""

    content: bytes
    kind: Literal["prepare"] = "prepare"


@dataclass(frozen=True, slots=True)
class Reconfigure:
    """Asked: serve by another configuration, as it was read from its file; answered once it is."""

    content: bytes
    kind: Literal["reconfigure"] = "reconfigure"


@dataclass(frozen=True, slots=True)
class DrainWanted:
    """Asked: answered once no request is under way by an earlier configuration."""

    kind: Literal["drain_wanted"] = "drain_wanted"


@dataclass(frozen=True, slots=True)
class Announced:
    """Asked: hold readers of a repository for the announcement of that number."""

    repository: str
    number: int
    kind: Literal["announced"] = "announced"


@dataclass(frozen=True, slots=True)
class Refreshed:
    """Asked: take over what came of a refresh; answered when it is served."""

    repository: str
    freshness: FreshnessState
    last: LastState
    snapshot: SnapshotNews | None
    kind: Literal["refreshed"] = "refreshed"


@dataclass(frozen=True, slots=True)
class Bundled:
    """Asked: offer these bundles of a repository from now on."""

    repository: str
    listed: BundleList | None
    kind: Literal["bundled"] = "bundled"


@dataclass(frozen=True, slots=True)
class Added:
    """Told, before anything else of it: there is a mirror below `upstreams`, or there still is."""

    repository: str
    kind: Literal["added"] = "added"


@dataclass(frozen=True, slots=True)
class Removed:
    """Asked: let go of a mirror; answered "busy" where it is kept because somebody reads it."""

    repository: str
    by_force: bool
    kind: Literal["removed"] = "removed"


@dataclass(frozen=True, slots=True)
class ReadsWanted:
    """Asked: when the mirrors below `upstreams` were last read."""

    kind: Literal["reads_wanted"] = "reads_wanted"


@dataclass(frozen=True, slots=True)
class Listen:
    """Asked: accept connections from the sockets inherited; answered when that is so."""

    kind: Literal["listen"] = "listen"


@dataclass(frozen=True, slots=True)
class CountsWanted:
    """Asked: the worker's own metrics."""

    kind: Literal["counts_wanted"] = "counts_wanted"


@dataclass(frozen=True, slots=True)
class CanaryWanted:
    """Asked: put a real request to yourself; answered when that was answered."""

    kind: Literal["canary_wanted"] = "canary_wanted"


@dataclass(frozen=True, slots=True)
class Leave:
    """Asked: accept nothing more; answered when no reader is shown refs here any more."""

    kind: Literal["leave"] = "leave"


@dataclass(frozen=True, slots=True)
class Stop:
    """Told: finish what is being served, for so long at most, and end."""

    drain_seconds: float
    kind: Literal["stop"] = "stop"


# From a worker.


@dataclass(frozen=True, slots=True)
class RefreshWanted:
    """Asked: refresh a repository; answered when a refresh that begins after now has ended."""

    repository: str
    trigger: Trigger
    kind: Literal["refresh_wanted"] = "refresh_wanted"


@dataclass(frozen=True, slots=True)
class MirrorWanted:
    """Asked: mirror a repository below `upstreams`; answered when every worker serves it.

    The answer has the label of what went wrong, and a sentence about it, where it can't be.
    """

    repository: str
    client: str
    kind: Literal["mirror_wanted"] = "mirror_wanted"


@dataclass(frozen=True, slots=True)
class Delivered:
    """Asked: take note of an announcement; answered "repeated" when it was taken before."""

    forge: str
    delivery: str
    repositories: tuple[str, ...]
    changes: tuple[ChangeState, ...]
    kind: Literal["delivered"] = "delivered"


@dataclass(frozen=True, slots=True)
class FiguresWanted:
    """Asked: what /metrics or /status.json tells."""

    what: Literal["metrics", "status"]
    kind: Literal["figures_wanted"] = "figures_wanted"


@dataclass(frozen=True, slots=True)
class LfsAsked:
    """Asked: which LFS objects a repository's upstream offers; answered as by `lfs_answer`."""

    repository: str
    pointers: tuple[Pointer, ...]
    kind: Literal["lfs_asked"] = "lfs_asked"


@dataclass(frozen=True, slots=True)
class LfsFetched:
    """Asked: bring an LFS object to the store; answered when it is there, or never will be."""

    repository: str
    pointer: Pointer
    kind: Literal["lfs_fetched"] = "lfs_fetched"


LfsWanted: TypeAlias = LfsAsked | LfsFetched


# Both ways.


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to the question of the same id.

    Attributes:
        text: What was asked for.
        error: Why it is not to be had; `None` where it is.
    """

    text: str = ""
    error: str | None = None
    kind: Literal["reply"] = "reply"


Message: TypeAlias = (
    Setup
    | Prepare
    | Reconfigure
    | DrainWanted
    | Announced
    | Refreshed
    | Bundled
    | Added
    | Removed
    | ReadsWanted
    | Listen
    | CountsWanted
    | CanaryWanted
    | Leave
    | Stop
    | RefreshWanted
    | MirrorWanted
    | Delivered
    | FiguresWanted
    | LfsAsked
    | LfsFetched
    | Reply
)


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message on its way. `id` is the question's, 0 for what is told."""

    id: int
    message: Annotated[Message, Field(discriminator="kind")]

    # Names of refs are bytes of any kind.
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        ser_json_bytes="base64", val_json_bytes="base64", extra="forbid"
    )
