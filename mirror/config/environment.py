"""What the process environment says. The only place that reads it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CONFIG_PATH_DEFAULT: Final = Path("/etc/git-mirror/mirror.yaml")

CREDENTIALS_VARIABLE: Final = "$CREDENTIALS_DIRECTORY"
"""At the beginning of a path: where systemd puts a unit's credentials (systemd.exec(5))."""

PREDECESSOR_VARIABLE: Final = "GIT_MIRROR_PREDECESSOR"
"""Set by a process that another one is to take over from, for that one alone."""

_SOCKETS: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


@dataclass(frozen=True, slots=True)
class Environment:
    """The process environment, as far as we heed it.

    Attributes:
        config_path: The configuration file where `--config` names none (`GIT_MIRROR_CONFIG`).
        credentials_directory: Where systemd put the credentials of this unit, if it did.
        notify_socket: Where the service manager wants to be told (sd_notify(3)), if it does.
        watchdog_seconds: How often at least, or it takes this process for hung; `None` for never.
        listening_sockets: How many sockets it has bound for this process, from descriptor 3 on.
        predecessor: The descriptor of the way to the process that this one takes over from.
    """

    config_path: Path = CONFIG_PATH_DEFAULT
    credentials_directory: Path | None = None
    notify_socket: str | None = None
    watchdog_seconds: float | None = None
    listening_sockets: int = 0
    predecessor: int | None = None

    def place(self, base: Path, path: Path) -> Path:
        """Return the whole path of a file that is written relative to `base`.

        A credential of systemd's stays as it is written where this process has none: whoever looks
        for the file says why it is not there.
        """
        if path.parts[:1] != (CREDENTIALS_VARIABLE,):
            return base / path
        if self.credentials_directory is None:
            return path
        return self.credentials_directory.joinpath(*path.parts[1:])


def environment() -> Environment:
    """Read the process environment."""
    variables = os.environ  # noqa: TID251 - the one place that reads it
    config_path, credentials = (
        variables.get("GIT_MIRROR_CONFIG"),
        variables.get(CREDENTIALS_VARIABLE.removeprefix("$")),
    )
    watchdog_microseconds = _number(variables, "WATCHDOG_USEC", only_for="WATCHDOG_PID")
    return Environment(
        config_path=Path(config_path) if config_path else CONFIG_PATH_DEFAULT,
        credentials_directory=Path(credentials) if credentials else None,
        notify_socket=variables.get("NOTIFY_SOCKET") or None,
        watchdog_seconds=watchdog_microseconds / 1e6 if watchdog_microseconds else None,
        listening_sockets=_number(variables, "LISTEN_FDS", only_for="LISTEN_PID") or 0,
        predecessor=_number(variables, PREDECESSOR_VARIABLE),
    )


def successors_environment(predecessor: int) -> dict[str, str]:
    """Return the environment of the process that takes over from this one.

    What the service manager meant for this process alone is taken out or made good for the other.

    Args:
        predecessor: The descriptor of the way to this process, which it inherits.
    """
    variables = dict(os.environ)  # noqa: TID251 - the one place that reads it
    for name in (*_SOCKETS, "WATCHDOG_PID"):
        variables.pop(name, None)
    return {**variables, PREDECESSOR_VARIABLE: str(predecessor)}


def forget_sockets() -> None:
    """Take what is this process's alone out of what its children inherit."""
    for name in (*_SOCKETS, PREDECESSOR_VARIABLE):
        os.environ.pop(name, None)  # noqa: TID251 - the one place that reads it


def _number(variables: Mapping[str, str], name: str, *, only_for: str | None = None) -> int | None:
    """Return a number; `None` where there is none, or it is for the process named in `only_for`."""
    text = variables.get(name, "")
    process = variables.get(only_for, "") if only_for is not None else ""
    if not text.isascii() or not text.isdigit() or process not in ("", str(os.getpid())):
        return None
    return int(text)
