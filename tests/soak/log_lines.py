"""The service's log: each line is kept, counted and judged; and which errors a trouble explains."""

import json
import logging
import logging.handlers
import time
from collections.abc import Mapping
from typing import Any, Final

from tests.soak.asking import GONE
from tests.soak.estate import Estate
from tests.soak.judges import log_mistake
from tests.soak.ledger import Trouble

LOG_BYTES_MAX: Final = 200_000_000
"""Of the copy of the service's log; the one before is kept too."""

WHAT_EXPLAINS: Final[Mapping[str, tuple[Trouble, ...]]] = {
    "worker_ended": GONE,
    "worker_broke": GONE,
    "worker_can_not_follow": GONE,
    "channel_broke": GONE,
    "no JSON": GONE,  # half a line
    "canary_not_answered": GONE,
    "worker_does_not_answer": GONE,
    "upgrade_failed": (Trouble.MACHINE,),
    "disk_short": (Trouble.DISK,),
    "disk_read_only": (Trouble.DISK,),
    "bundles_failed": (Trouble.DISK, Trouble.DAMAGE),
    "damage_found": (Trouble.DAMAGE,),
    "scrub_found_damage": (Trouble.DAMAGE,),
    "configuration_problem": (Trouble.CONFIGURATION,),
    "configuration_refused": (Trouble.CONFIGURATION,),
}
"""Which troubles explain a line of the log that is an error; nothing else does."""

CACHES: Final = "caches"
"""What damage is of that is no repository's."""


class LogJudge:
    """Judges lines as they come."""

    def __init__(self, estate: Estate) -> None:
        self._estate = estate
        self._file = logging.handlers.RotatingFileHandler(
            estate.directory / "service.log", maxBytes=LOG_BYTES_MAX, backupCount=1
        )

    def judge(self, line: str) -> None:
        """Judge a line."""
        ledger = self._estate.ledger
        self._file.emit(logging.makeLogRecord({"msg": line.rstrip("\n")}))
        mistake = log_mistake(line, self._estate.secrets, self._is_explained)
        if mistake is not None:
            ledger.violate("log", mistake)
        ledger.judged["log lines"] += 1
        ledger.log[_event_of(line)] += 1

    def _is_explained(self, event: Mapping[str, Any]) -> bool:
        troubles = WHAT_EXPLAINS.get(event["event"], ())
        of = event.get("repository") or CACHES
        return self._estate.conditions.explain(time.monotonic(), *troubles, of=of)

    def close(self) -> None:
        """Write no more."""
        self._file.close()


def _event_of(line: str) -> str:
    try:
        return str(json.loads(line)["event"])[:60]
    except (ValueError, KeyError, TypeError):
        return "(no event)"
