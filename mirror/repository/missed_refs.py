"""A note of the refs that an upstream does not list any more, for the time after a restart.

What counts is for how long they have been missed while somebody looked: no clock of the wall,
which may be set, and no time in which the service was down. It is a hint: lost where the disk has
no room for it, and passed over where it is not what was written. Then the doubt begins anew.
Blocking.
"""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mirror.wire.names import RefName

NOTE: Final = "git-mirror-missed"

REFS_MAX: Final = 100_000
"""Of more, no note is kept: it is written at each look, some 60 bytes for each."""


@dataclass(frozen=True, slots=True)
class MissedRefs:
    """What the note says.

    Attributes:
        looks: How many times in a row some were missed.
        noticed_at: When the first was; seconds since the epoch.
        seconds: For how long each has been missed.
    """

    looks: int
    noticed_at: float
    seconds: Mapping[RefName, float]


def keep_missed(repository: Path, missed: MissedRefs | None) -> None:
    """Write the note of the repository at a path; `None` removes it."""
    note, draft = repository / NOTE, repository / f"{NOTE}.tmp"
    with suppress(OSError):
        if missed is None or len(missed.seconds) > REFS_MAX:
            note.unlink(missing_ok=True)
            return
        lines = [b"%d %f\n" % (missed.looks, missed.noticed_at)]
        lines += [b"%f %b\n" % (seconds, name) for name, seconds in missed.seconds.items()]
        content = b"".join(lines)
        try:
            draft.write_bytes(_digest(content) + b"\n" + content)
            draft.replace(note)
        finally:
            draft.unlink(missing_ok=True)


def find_missed(repository: Path) -> MissedRefs | None:
    """Read the note of the repository at a path; `None` where there is none that is right."""
    try:
        digest, _, content = (repository / NOTE).read_bytes().partition(b"\n")
        if digest != _digest(content):
            return None
        first, *lines = content.splitlines()
        looks, noticed_at = first.split(b" ")
        pairs = (line.split(b" ", 1) for line in lines)
        seconds = {RefName(name): float(missed) for missed, name in pairs}
        return MissedRefs(int(looks), float(noticed_at), seconds)
    except (OSError, ValueError):
        return None


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()
