"""Showing long work to people: a bar per repository on a terminal, log lines otherwise."""

import sys
import time
from typing import Final, Protocol

import structlog
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from mirror.logs import legible
from mirror.refresh.mirror import Progress

QUIET_SECONDS: Final = 2.0
"""What is done sooner needs no progress report."""

BAR_SECONDS: Final = 0.3
"""Nor a bar that only flickers."""

LINE_SECONDS: Final = 10.0
"""Between two log lines about one repository."""

logger = structlog.stdlib.get_logger()


class Display(Protocol):
    """Takes progress reports."""

    def show(self, name: str, progress: Progress | None) -> None:
        """Show how far the work on `name` has come; `None` when it has ended."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was."""
        ...


def display_for_stderr() -> Display:
    """Return what suits stderr: bars on a terminal, log lines otherwise."""
    return BarDisplay() if sys.stderr.isatty() else LineDisplay()


class LineDisplay:
    """A log line now and then."""

    def __init__(self) -> None:
        self._next_at: dict[str, float] = {}

    def show(self, name: str, progress: Progress | None) -> None:
        """See `Display`."""
        now = time.monotonic()
        if progress is None:
            self._next_at.pop(name, None)
            return
        if now < self._next_at.setdefault(name, now + QUIET_SECONDS):
            return
        self._next_at[name] = now + LINE_SECONDS
        logger.info(
            "refresh_progress",
            repository=name,
            phase=progress.phase,
            done=progress.done,
            total=progress.total,
            upstream_says=progress.message or None,
        )

    def close(self) -> None:
        """See `Display`."""


class BarDisplay:
    """A bar per repository that takes longer than a moment."""

    def __init__(self) -> None:
        self._bars = Bars(
            TextColumn("{task.fields[name]}", style="bold", markup=False),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._began: dict[str, float] = {}

    def show(self, name: str, progress: Progress | None) -> None:
        """See `Display`."""
        if progress is None:
            self._began.pop(name, None)
            if name in self._tasks:
                self._bars.remove_task(self._tasks.pop(name))
            if not self._tasks:
                self._bars.stop()
            return
        now = time.monotonic()
        if now - self._began.setdefault(name, now) < BAR_SECONDS:
            return
        if name not in self._tasks:
            self._bars.start()
            self._tasks[name] = self._bars.add_task("", name=name, count="")
        self._bars.update(
            self._tasks[name],
            description=legible(f"{progress.phase} {progress.message[:40]}".strip()),
            completed=progress.done,
            total=progress.total,
            count=_count(progress),
        )

    def close(self) -> None:
        """See `Display`."""
        self._bars.stop()


def _count(progress: Progress) -> str:
    if progress.total is not None:
        return f"{progress.done}/{progress.total} objects"
    return decimal(progress.done) if progress.done else ""
