"""When the configuration is read again, and what came of it.

Somebody asks (the signal HUP, `git-mirror reload`), or the file has changed. A change is heeded
once the file has been the same for a moment: editors and `ConfigMap` volumes write in several
steps. Whoever asks while the file is being read shares the next time. A file with mistakes changes
nothing; it is looked at again when it changes.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog

from mirror.config import Settings, check_files, load, why_not
from mirror.errors import ConfigError, MirrorError
from mirror.reload.changeover import Changeover
from mirror.reload.figures import Outcome, ReloadFigures
from mirror.upstream.credentials import Stamp, stamp_of

LOOK_SECONDS: Final = 1.0
"""Between two looks at the file: a stat. A change counts when two looks find the same."""

PROBLEMS_TOLD_MAX: Final = 1000

LONG_SECONDS: Final = 45.0
"""Workers get 30 seconds to follow; what takes longer is worth a line in the log."""

Telling = Callable[[], AbstractContextManager[None]]
"""Entered when a reload begins and left when it has ended, for a service manager."""

logger = structlog.stdlib.get_logger()


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What came of reading the configuration again.

    Attributes:
        outcome: In one word.
        problems: Why it is not applied, a line each; as `git-mirror check` says it.
        warnings: What is wrong with files that it names, though it is applied.
        restart: The keys that need a restart.
        done: What was applied, in a few words.
        at: When; seconds since the epoch.
    """

    outcome: Outcome
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()
    done: str = ""
    at: float = field(default_factory=time.time)

    def describe(self) -> dict[str, Any]:
        """Return it as `git-mirror reload` gets it."""
        return {
            "outcome": self.outcome.value,
            "problems": list(self.problems[:PROBLEMS_TOLD_MAX]),
            "warnings": list(self.warnings[:PROBLEMS_TOLD_MAX]),
            "restart": list(self.restart),
            "done": self.done,
        }


class Reloader:
    """Reads the configuration again, one time after the other."""

    def __init__(
        self,
        changeover: Changeover,
        figures: ReloadFigures,
        *,
        telling: Telling = nullcontext,
    ) -> None:
        self._changeover = changeover
        self._figures = figures
        self._telling = telling
        self._good_at = time.time()
        self._last: Reloaded | None = None
        self._read: bytes | None = changeover.settings.content
        self._running: asyncio.Task[Reloaded] | None = None
        self._next: asyncio.Task[Reloaded] | None = None
        self._watching: asyncio.Task[None] | None = None

    @property
    def settings(self) -> Settings:
        """What applies now."""
        return self._changeover.settings

    def reload(self) -> "asyncio.Task[Reloaded]":
        """Read the file after now; the task is shared: wait for it with `asyncio.shield`."""
        if self._next is None:
            self._next = asyncio.create_task(self._after(self._running), name="reload")
        return self._next

    def start(self) -> None:
        """Begin to look after the file, unless that is so."""
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch(), name="configuration file")

    async def pause(self) -> None:
        """Look after the file no more, until `start`; what is under way is finished first."""
        await self._unwatch()
        while tasks := [one for one in (self._running, self._next) if one is not None]:
            await asyncio.wait(tasks)

    async def close(self) -> None:
        """End what is under way, and look after the file no more, until `start`."""
        await self._unwatch()
        for task in (self._next, self._running):
            if task is not None:
                task.cancel()
                await asyncio.wait((task,))
        self._next = None

    async def _unwatch(self) -> None:
        task, self._watching = self._watching, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))

    def describe(self) -> dict[str, Any]:
        """Return the configuration's part of the status."""
        last = self._last
        is_refused = last is not None and not last.outcome.is_good
        return {
            "source": str(self.settings.source),
            "loaded_at": self._good_at,
            "refused_at": last.at if last is not None and is_refused else None,
            "problems": list(last.problems) if last is not None and is_refused else [],
            "restart_needed": [] if last is None else list(last.restart),
        }

    # --- one time ------------------------------------------------------------------------------

    async def _after(self, before: "asyncio.Task[Reloaded] | None") -> Reloaded:
        if before is not None:
            await asyncio.wait((before,))
        self._running, self._next = self._next, None
        try:
            return await self._reload()
        finally:
            self._running = None

    async def _reload(self) -> Reloaded:
        late = asyncio.get_running_loop().call_later(LONG_SECONDS, _log_long, self.settings.source)
        try:
            return await self._reload_told()
        finally:
            late.cancel()

    async def _reload_told(self) -> Reloaded:
        with self._telling():
            try:
                reloaded = await self._outcome()
            except Exception as error:  # whatever it is, there are readers to serve
                logger.exception("reload_broke")
                problem = f"unexpected {type(error).__name__}: {error}"
                reloaded = Reloaded(Outcome.FAILED, (problem,))
        self._last = reloaded
        if reloaded.outcome.is_good:
            self._good_at = reloaded.at
        self._figures.record(reloaded.outcome, restart_keys=len(reloaded.restart))
        _log(reloaded, self.settings.source)
        return reloaded

    async def _outcome(self) -> Reloaded:
        running = self._changeover.settings
        kept = () if self._last is None else self._last.restart
        try:
            new, warnings = await asyncio.to_thread(_look, running.source)
        except ConfigError as error:
            self._read = None
            return Reloaded(Outcome.REFUSED, tuple(str(error).splitlines()), restart=kept)
        self._read = new.content
        reason = why_not(running, new)
        if reason is not None:
            return Reloaded(Outcome.REFUSED, (f"{new.source}: {reason}",), restart=kept)
        try:
            difference = await self._changeover.apply(new)
        except MirrorError as error:
            return Reloaded(Outcome.FAILED, (str(error),), restart=kept)
        if not difference.is_any:
            return Reloaded(Outcome.UNCHANGED, warnings=tuple(warnings), restart=difference.restart)
        counts = {
            "added": len(difference.added),
            "removed": len(difference.removed),
            "changed": len(difference.changed),
        }
        words = [f"{count} {what}" for what, count in counts.items() if count]
        words = [f"repositories: {', '.join(words)}"] if words else []
        if difference.parts:
            words.append(f"sections: {', '.join(sorted(difference.parts))}")
        return Reloaded(
            Outcome.APPLIED,
            warnings=tuple(warnings),
            restart=difference.restart,
            done="; ".join(words),
        )

    # --- the file ------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Read the file again whenever it has become another."""
        before: Stamp | None = None
        heeded: Stamp | None = None
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if not self.settings.server.reload_on_change:
                continue
            try:
                stamp = await asyncio.to_thread(_stamp_of, self.settings.source)
                if stamp == before and stamp is not None and stamp != heeded:
                    content = await asyncio.to_thread(_content_of, self.settings.source)
                    heeded = stamp
                    if content != self._read:
                        await asyncio.wait((self.reload(),))
                before = stamp
            except Exception:  # such as a thread too many: the next look may find one
                logger.exception("configuration_not_looked_at")


def _look(source: Path) -> tuple[Settings, list[str]]:
    """Read the file, and look at those that it names; blocking.

    Raises:
        ConfigError: It has mistakes.
    """
    settings = load(source)
    return settings, check_files(settings)


def _stamp_of(source: Path) -> Stamp | None:
    try:
        return stamp_of(source.stat())
    except OSError:
        return None


def _content_of(source: Path) -> bytes | None:
    """Return the file's content; `None` where it can't be read, which a reload is to tell."""
    try:
        return source.read_bytes()
    except OSError:
        return None


def _log_long(source: Path) -> None:
    """Say that one hangs, or nearly so: else the log has nothing of it until it ends."""
    logger.warning("reload_takes_long", source=str(source), seconds=LONG_SECONDS)


def _log(reloaded: Reloaded, source: Path) -> None:
    fields = {"source": str(source), "restart": list(reloaded.restart)}
    for line in reloaded.warnings[:PROBLEMS_TOLD_MAX]:
        logger.warning("configuration_warning", problem=line)
    if reloaded.outcome.is_good:
        logger.info(
            "configuration_reloaded",
            outcome=reloaded.outcome.value,
            done=reloaded.done,
            **fields,
        )
    else:
        for line in reloaded.problems[:PROBLEMS_TOLD_MAX]:
            logger.error("configuration_problem", problem=line)
        logger.error("configuration_refused", outcome=reloaded.outcome.value, **fields)
    if reloaded.restart:
        logger.warning("restart_needed", message=f"restart to apply: {', '.join(reloaded.restart)}")
