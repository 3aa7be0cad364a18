"""What the process environment says. The only place that reads it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CONFIG_PATH_DEFAULT: Final = Path("/etc/git-mirror/mirror.yaml")


@dataclass(frozen=True, slots=True)
class Environment:
    """The process environment, as far as we heed it.

    Attributes:
        config_path: The configuration file where `--config` names none (`GIT_MIRROR_CONFIG`).
    """

    config_path: Path = CONFIG_PATH_DEFAULT


def environment() -> Environment:
    """Read the process environment."""
    path = os.environ.get("GIT_MIRROR_CONFIG")  # noqa: TID251 - the one place that reads it
    return Environment(config_path=Path(path)) if path else Environment()
