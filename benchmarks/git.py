"""The git of this machine, without anybody's settings."""

import os
import subprocess
import time
from pathlib import Path
from typing import Final

GIT_SECONDS_MAX: Final = 600.0
ENVIRONMENT: Final = {
    "PATH": os.environ.get("PATH", os.defpath),
    "HOME": "/nonexistent",
    "LC_ALL": "C",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_AUTHOR_NAME": "Kari Nordmann",
    "GIT_AUTHOR_EMAIL": "kari@acme.example",
    "GIT_COMMITTER_NAME": "Kari Nordmann",
    "GIT_COMMITTER_EMAIL": "kari@acme.example",
}


class GitFailed(Exception):
    """git did not do what was asked."""


def git(
    *arguments: str | Path, cwd: Path | None = None, stdin: bytes = b"", program: str = "git"
) -> str:
    """Run git and return what it prints, stripped.

    Raises:
        GitFailed: With what it says.
    """
    done = subprocess.run(
        [program, *map(str, arguments)],
        cwd=cwd,
        env=ENVIRONMENT,
        input=stdin,
        capture_output=True,
        check=False,
        timeout=GIT_SECONDS_MAX,
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()[-500:]
        raise GitFailed(f"git {' '.join(map(str, arguments))}: {said}")
    return done.stdout.decode(errors="replace").strip()


def timed(
    *arguments: str | Path, cwd: Path | None = None, program: str = "git"
) -> tuple[float, str]:
    """Run git and return how many milliseconds the whole process took, and what it printed."""
    began_at = time.perf_counter()
    printed = git(*arguments, cwd=cwd, program=program)
    return (time.perf_counter() - began_at) * 1000, printed


def exec_path() -> Path:
    return Path(git("--exec-path"))
