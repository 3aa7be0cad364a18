"""What the process environment says. The only place that reads it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CONFIG_PATH_DEFAULT: Final = Path("/etc/git-mirror/mirror.yaml")

CREDENTIALS_VARIABLE: Final = "$CREDENTIALS_DIRECTORY"
"""At the beginning of a path: where systemd puts a unit's credentials (systemd.exec(5))."""


@dataclass(frozen=True, slots=True)
class Environment:
    """The process environment, as far as we heed it.

    Attributes:
        config_path: The configuration file where `--config` names none (`GIT_MIRROR_CONFIG`).
        credentials_directory: Where systemd put the credentials of this unit, if it did.
    """

    config_path: Path = CONFIG_PATH_DEFAULT
    credentials_directory: Path | None = None

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
    return Environment(
        config_path=Path(config_path) if config_path else CONFIG_PATH_DEFAULT,
        credentials_directory=Path(credentials) if credentials else None,
    )
