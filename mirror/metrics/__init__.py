"""What Prometheus is told.

counted    what happens: one method per event
looked_up  how repositories and receivers are: looked at when somebody asks
disk       the room on the disk, told by the one process that watches it
"""

from mirror.metrics.counted import (
    BUNDLE_OUTCOMES,
    CONTENT_TYPE,
    WEBHOOK_OUTCOMES,
    EndReason,
    Metrics,
)
from mirror.metrics.looked_up import RelayState, RepositoryState

__all__ = [
    "BUNDLE_OUTCOMES",
    "CONTENT_TYPE",
    "WEBHOOK_OUTCOMES",
    "EndReason",
    "Metrics",
    "RelayState",
    "RepositoryState",
]
