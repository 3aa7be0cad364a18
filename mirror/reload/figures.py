"""What metrics tell of reading the configuration again."""

import enum
import time

from prometheus_client import CollectorRegistry, Counter, Gauge


class Outcome(enum.StrEnum):
    """What came of it.

    `APPLIED` says that everything that needs no restart is; `REFUSED` that the file has mistakes,
    `FAILED` that it has none and can't be applied all the same: what was before goes on.
    """

    APPLIED = "applied"
    UNCHANGED = "unchanged"
    REFUSED = "refused"
    FAILED = "failed"

    @property
    def is_good(self) -> bool:
        """Tell whether the service runs by the file."""
        return self in (Outcome.APPLIED, Outcome.UNCHANGED)


class ReloadFigures:
    """The metrics of it, in the main process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._successful = Gauge(
            "git_mirror_config_last_reload_successful",
            "1 while the service runs by the configuration file as it was last read.",
            registry=registry,
        )
        self._succeeded_at = Gauge(
            "git_mirror_config_last_reload_success_timestamp_seconds",
            "When the configuration that the service runs by was last found to be the file's.",
            registry=registry,
        )
        self._restart_keys = Gauge(
            "git_mirror_config_restart_needed",
            "Keys of the configuration file whose change waits for a restart.",
            registry=registry,
        )
        self._reloads = Counter(
            "git_mirror_config_reloads",
            "How often the configuration file was read again, by what came of it.",
            ["outcome"],
            registry=registry,
        )
        for outcome in Outcome:
            self._reloads.labels(outcome.value)
        self._successful.set(1)
        self._succeeded_at.set(time.time())

    def record(self, outcome: Outcome, *, restart_keys: int) -> None:
        """The file was read again.

        Args:
            outcome: What came of it.
            restart_keys: How many keys wait for a restart.
        """
        self._reloads.labels(outcome.value).inc()
        self._successful.set(outcome.is_good)
        self._restart_keys.set(restart_keys)
        if outcome.is_good:
            self._succeeded_at.set(time.time())
