"""Structured logs: an event name and fields, as JSON in production and readable on a terminal.

What an outsider wrote (ref names, paths, messages) goes through the renderer as a value, never as
part of the line's own text, and is escaped there, so that control characters can't forge a line nor
play with the terminal of whoever reads it.
"""

import io
import logging
import sys
from typing import TextIO

import structlog


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at that moment: a progress bar puts itself in its place."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]  # an attribute in the base class
        return sys.stderr


class _NotOurErrors(logging.Filter):
    """Says in one line that a request was no HTTP, or that a client left.

    aiohttp logs the one as an error with a traceback, and with the beginning of the header that was
    too long: that can be a password; and the other where it answers by itself, before any handler.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        is_malformed = type(error).__module__ == "aiohttp.http_exceptions"
        if is_malformed or isinstance(error, ConnectionError):
            record.msg, record.args = "malformed_http" if is_malformed else "client_gone", ()
            record.exc_info = record.exc_text = None
            record.levelno, record.levelname = logging.INFO, "INFO"
        return True


def legible(text: str) -> str:
    """Return text that can neither move a terminal's cursor nor begin a line of its own.

    What is not printable (control characters, also those above 0x7f, and marks that turn the
    direction of writing) becomes its escape: a peer may have written it.
    """
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


def _legible_event(
    logger: object, method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Make each value one for a terminal, before the renderer adds its colours."""
    del logger, method
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = legible(value)
    return event


def _legible_traceback(sio: TextIO, exc_info: structlog.typing.ExcInfo) -> None:
    """Write a traceback whose lines can't be taken for lines of the log.

    Without local variables, which structlog shows by default: secrets are among them.
    """
    plain = io.StringIO()
    structlog.dev.plain_traceback(plain, exc_info)
    lines = plain.getvalue().removeprefix("\n").split("\n")
    sio.write("".join(f"\n  | {legible(line)}" for line in lines))


class _Field:
    """Adds the same field to every line."""

    def __init__(self, name: str, value: object) -> None:
        self._name = name
        self._value = value

    def __call__(
        self, logger: object, method: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        event.setdefault(self._name, self._value)
        return event


def configure(*, json: bool, level: str, worker: int | None = None) -> None:
    """Set up logging for the process, on stderr.

    Args:
        json: JSON lines, or lines for a person.
        level: `debug`, `info`, `warning` or `error`.
        worker: The number of this worker process; each line names it.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        *([] if worker is None else [_Field("worker", worker)]),
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    rendered: list[structlog.typing.Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=repr)]
        if json
        else [
            _legible_event,
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=_legible_traceback
            ),
        ]
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendered],
    )
    handler = _StderrHandler()
    handler.setFormatter(formatter)
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.getLogger("aiohttp.server").addFilter(_NotOurErrors())
    for noisy in ("asyncio", "aiohttp.access"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))
