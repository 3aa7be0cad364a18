"""What the service manager is told: sd_notify(3), as far as it is needed here.

Nothing is sent where no manager asked for it (`$NOTIFY_SOCKET`), and a manager that does not take a
message is no reason to fail: what is told is for its information. There are libraries for this;
those on PyPI have been left alone for years, or know no abstract sockets.
"""

import socket
import time
from dataclasses import dataclass
from typing import Final

import structlog

WATCHDOG_SHARE: Final = 0.5
"""sd_watchdog_enabled(3) recommends to ping at half of the time that is allowed."""

logger = structlog.stdlib.get_logger()


@dataclass(frozen=True, slots=True)
class Manager:
    """The service manager that started this process.

    Attributes:
        address: Its socket, as `$NOTIFY_SOCKET` has it: a path, or `@` and an abstract name; `None`
            where nobody is to be told.
        watchdog_seconds: It kills us when it hears nothing for so long; `None` for never.
    """

    address: str | None = None
    watchdog_seconds: float | None = None

    @property
    def ping_seconds(self) -> float | None:
        """How often to say that all is well; `None` for never."""
        return None if self.watchdog_seconds is None else self.watchdog_seconds * WATCHDOG_SHARE

    def ready(self, status: str) -> None:
        """Say that the service serves: after a start, a hand-over and a reload."""
        self._tell("READY=1", f"STATUS={_line(status)}")

    def reloading(self, status: str) -> None:
        """Say that a reload begins; `ready` ends it, whatever came of it."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._tell("RELOADING=1", f"MONOTONIC_USEC={now}", f"STATUS={_line(status)}")

    def stopping(self, status: str) -> None:
        """Say that the service ends."""
        self._tell("STOPPING=1", f"STATUS={_line(status)}")

    def status(self, status: str) -> None:
        """Say what is going on, in a line for people."""
        self._tell(f"STATUS={_line(status)}")

    def alive(self) -> None:
        """Keep the watchdog quiet for another time."""
        self._tell("WATCHDOG=1")

    def extend(self, seconds: float) -> None:
        """Ask for that much more time to start, reload or stop, counted from now."""
        self._tell(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def replaced_by(self, pid: int) -> None:
        """Say that another process is the service's main one from now on."""
        self._tell(f"MAINPID={pid}")

    def _tell(self, *assignments: str) -> None:
        if self.address is None:
            return
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
                to.setblocking(False)  # noqa: FBT003 - its queue being full must not stop the loop
                to.sendto("\n".join(assignments).encode(), address)
        except OSError as error:
            logger.warning("manager_not_told", what=assignments[0], error=str(error))


NOBODY: Final = Manager()
"""Where no service manager asked to be told."""


def _line(text: str) -> str:
    return " ".join(text.split())
