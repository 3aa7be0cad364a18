"""LFS between a worker and the main process: what a worker wants, and what came of it.

Only the main process talks to upstreams, so equal wishes of all workers meet there, and the limits
hold for all. The bytes take no part in it: a worker reads them from the file that they are written
to. Errors keep what readers are told by: their sentence, and their status.
"""

import json
from collections.abc import Sequence
from typing import Final

from mirror.errors import (
    LocalError,
    MirrorError,
    Overloaded,
    UpstreamRefused,
    UpstreamUnavailable,
)
from mirror.refresh.lfs import LfsSource
from mirror.repository.lfs_store import StoreFull
from mirror.wire.lfs import Pointer, Refusal
from mirror.workers.link import Link
from mirror.workers.messages import LfsAsked, LfsFetched, LfsWanted

_ERRORS: Final[dict[str, type[MirrorError]]] = {
    one.label: one for one in (UpstreamUnavailable, UpstreamRefused, Overloaded, StoreFull)
}
"""Any other is an error of this machine's."""


class LfsProxy:
    """Has the main process ask upstreams: the `LfsSource` of a worker."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def ask(self, name: str, pointers: Sequence[Pointer]) -> dict[str, Refusal | None]:
        """See `LfsSource.ask`."""
        answer = await self._link.ask(LfsAsked(name, tuple(pointers)))
        found = _opened(answer.text)
        return {oid: None if why is None else Refusal(*why) for oid, why in found.items()}

    async def fetch(self, name: str, pointer: Pointer) -> None:
        """See `LfsSource.fetch`."""
        answer = await self._link.ask(LfsFetched(name, pointer))
        _opened(answer.text)


async def lfs_answer(source: LfsSource, wanted: LfsWanted) -> bytes:
    """Do what a worker wants; returns the text of the reply."""
    found: dict[str, tuple[int, str] | None] = {}
    try:
        match wanted:
            case LfsAsked():
                answers = await source.ask(wanted.repository, wanted.pointers)
                found = {
                    oid: None if why is None else (why.code, why.message)
                    for oid, why in answers.items()
                }
            case LfsFetched():
                await source.fetch(wanted.repository, wanted.pointer)
    except MirrorError as error:
        kinds = (one.label for one in type(error).__mro__ if issubclass(one, MirrorError))
        kind = next((label for label in kinds if label in _ERRORS), "")
        return json.dumps({"kind": kind, "error": str(error)}).encode()
    return json.dumps({"found": found}).encode()


def _opened(text: str) -> dict[str, tuple[int, str] | None]:
    """Return what was found.

    Raises:
        MirrorError: What was raised there.
    """
    reply = json.loads(text)
    if "error" in reply:
        raise _ERRORS.get(reply["kind"], LocalError)(reply["error"])
    found: dict[str, tuple[int, str] | None] = reply["found"]
    return found
