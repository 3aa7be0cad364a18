"""The one tree of errors, each with its HTTP status and its label in the metrics.

Raise where the mistake is found; translate at one boundary (`mirror.web.app`); log once.

    MirrorError
    ├── ClientError              the reader's request can't be answered as it is
    │   ├── ProtocolError        bytes that are not what the Git protocol says
    │   │   └── RequestRefused   a request that was read, for what is not served
    │   ├── UnknownRepository    no such path here
    │   ├── NoBundle             a bundle, or a list of them, that is not offered
    │   ├── NotOurRef            a want that neither the mirror nor its upstream has
    │   ├── NotYetMirrored       the first clone is still under way
    │   ├── StaleRefused         the answer would be stale, and `on_stale: refuse`
    │   ├── TooLarge             over a stated limit
    │   ├── Overloaded           a bounded queue is full
    │   ├── ReadOnly             a push
    │   ├── Unauthenticated      a wrong signature, credentials that are not good
    │   │   └── SignInWanted     a reader has to show who it is
    │   ├── TooManyAttempts      too many failed attempts from one address
    │   └── NotAllowedHere       what only some addresses may look at
    ├── UpstreamError            the upstream did not answer as it should
    │   ├── UpstreamUnavailable  passing: worth another try
    │   │   └── RefsVanished     it lists no refs any more: too much to believe at once
    │   └── UpstreamRefused      lasting until somebody mends the configuration or the upstream
    │       ├── OtherObjectFormat  its ids are of another hash
    │       └── NotUpstream      the upstream says that there is no such repository
    ├── LocalError               this machine: disk, child process, configuration
    │   ├── PackError            a pack could not be made or indexed
    │   ├── OtherProcessGone     another process of this service has ended, or is starting
    │   ├── HandedOver           another process serves now, and is to be asked
    │   ├── DiskTrouble          the disk took nothing: passes by itself once there is room
    │   │   ├── DiskFull         no room, or none but the reserve
    │   │   └── DiskReadOnly     it is mounted read-only
    │   ├── OverQuota            a repository would take more of the disk than it may
    │   │   └── Damaged          what lies on disk is not what was written there
    │   └── ConfigError          the configuration file, with every mistake in it
    └── (nothing else)
"""

from enum import StrEnum
from typing import ClassVar


class Trouble(StrEnum):
    """Why a refresh failed: the values of one label, each with its own row in docs/operations.md.

    Finer than the classes of errors, which say what is to happen next.
    """

    UNREACHABLE = "unreachable"  # no address, no connection, or the proxy has none
    CERTIFICATE = "certificate"  # TLS, but not with whom it should be
    SILENT = "silent"
    SLOW = "slow"  # it sends, but less than the least
    BROKE_OFF = "broke_off"
    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"  # 5xx
    CREDENTIALS = "credentials"  # 401, 403, or they can't be had
    NOT_FOUND = "not_found"
    REDIRECTED = "redirected"
    NOT_GIT = "not_git"  # a web page, say
    MALFORMED = "malformed"  # not the Git protocol, or an error that it reports
    TOO_LARGE = "too_large"
    NO_PACK = "no_pack"  # it talks and talks, and sends no pack
    NO_REFS = "no_refs"  # the first listing of a repository, with nothing in it
    REFS_VANISHED = "refs_vanished"
    UNSUPPORTED = "unsupported"  # another hash, a shallow repository
    BAD_PACK = "bad_pack"
    TOOK_TOO_LONG = "took_too_long"
    LOCAL = "local"  # this machine
    OTHER = "other"


class MirrorError(Exception):
    """Anything this program raises on purpose. `str()` of it says what to do."""

    status: ClassVar[int] = 500
    label: ClassVar[str] = "internal"
    trouble: Trouble = Trouble.OTHER


class ClientError(MirrorError):
    """The reader's request can't be answered as it is."""

    status = 400
    label = "client_error"


class ProtocolError(ClientError):
    """Bytes that are not what the Git protocol says they must be."""

    label = "protocol_error"


class RequestRefused(ProtocolError):
    """A request that was read and asks for what is not served: told by an ``ERR`` pkt-line."""


class UnknownRepository(ClientError):
    """No repository of that path is configured."""

    status = 404
    label = "unknown_repository"


class NoBundle(ClientError):
    """A bundle, or a list of bundles, that is not offered (any more)."""

    status = 404
    label = "no_bundle"


class NotOurRef(ClientError):
    """A want that neither the mirror nor its upstream has."""

    label = "not_our_ref"


class NotYetMirrored(ClientError):
    """The first clone is not finished: never to be answered as an empty repository."""

    status = 503
    label = "not_yet_mirrored"


class StaleRefused(ClientError):
    """The only answer at hand is stale and the repository's policy is `on_stale: refuse`."""

    status = 503
    label = "stale_refused"


class TooLarge(ClientError):
    """Over a stated limit."""

    status = 413
    label = "too_large"


class Overloaded(ClientError):
    """A bounded queue is full."""

    status = 503
    label = "overloaded"


class ReadOnly(ClientError):
    """A push: the mirror never accepts one."""

    status = 403
    label = "read_only"


class Unauthenticated(ClientError):
    """A wrong or missing signature, or credentials that are not good."""

    status = 401
    label = "unauthenticated"


class SignInWanted(Unauthenticated):
    """A reader has to show who it is, or what it showed is not good: it may try again."""


class TooManyAttempts(ClientError):
    """Too many failed attempts from one address.

    Attributes:
        retry_after_seconds: How long to wait.
    """

    status = 429
    label = "too_many_attempts"

    def __init__(self, message: str, *, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class NotAllowedHere(ClientError):
    """What only some addresses may look at."""

    status = 403
    label = "not_allowed"


class UpstreamError(MirrorError):
    """The upstream did not answer as it should.

    Attributes:
        trouble: In what way, where that is more than the class tells.
    """

    status = 502
    label = "upstream_error"
    transient: ClassVar[bool] = True

    def __init__(self, message: str, *, trouble: Trouble | None = None) -> None:
        super().__init__(message)
        if trouble is not None:
            self.trouble = trouble


class UpstreamUnavailable(UpstreamError):
    """Passing trouble: unreachable, slow, cut off, 429 or 5xx.

    Attributes:
        retry_after_seconds: What the upstream's Retry-After asked for, if it did.
    """

    label = "upstream_unavailable"

    def __init__(
        self,
        message: str,
        *,
        trouble: Trouble | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message, trouble=trouble)
        self.retry_after_seconds = retry_after_seconds


class RefsVanished(UpstreamUnavailable):
    """The upstream lists none of the refs that it had, and nothing has confirmed that yet."""

    trouble = Trouble.REFS_VANISHED


class UpstreamRefused(UpstreamError):
    """Lasting until somebody acts: 401, 403, 404, a moved host, an unsupported repository."""

    label = "upstream_refused"
    transient = False


class OtherObjectFormat(UpstreamRefused):
    """The upstream's object ids are of another hash than SHA-1."""

    label = "other_object_format"
    trouble = Trouble.UNSUPPORTED


class NotUpstream(UpstreamRefused):
    """The upstream says that there is no such repository, or none that we may see."""

    trouble = Trouble.NOT_FOUND


class LocalError(MirrorError):
    """Something on this machine: disk, child process."""

    label = "local_error"
    trouble = Trouble.LOCAL


class PackError(LocalError):
    """A pack could not be made, indexed or verified."""

    label = "pack_error"
    trouble = Trouble.BAD_PACK


class OtherProcessGone(LocalError):
    """Another process of this service has ended: the next one takes its place in a moment."""

    status = 503
    label = "other_process_gone"


class HandedOver(LocalError):
    """Another process serves now: it is to be asked, at the same place."""

    status = 503
    label = "handed_over"


class DiskTrouble(LocalError):
    """The disk takes nothing at the moment; what was tried may be tried again soon."""

    status = 507
    label = "disk_trouble"


class DiskFull(DiskTrouble):
    """There is no room on the disk, or none but the reserve."""

    label = "disk_full"


class DiskReadOnly(DiskTrouble):
    """The file system is mounted read-only."""

    label = "disk_read_only"


class OverQuota(LocalError):
    """A repository, or all of them, would take more of the disk than the configuration allows."""

    status = 507
    label = "over_quota"


class Damaged(PackError):
    """What lies on disk is not what was written there: found by a checksum, never served."""

    label = "damaged"


class ConfigError(LocalError):
    """The configuration file can't be used. The message lists every mistake with its line."""

    label = "config_error"
