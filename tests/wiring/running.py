"""Runs what people paste as it stands, with the mirror's URL led to the one under test."""

import asyncio
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.clients.builds import program
from tests.clients.operations import Unavailable
from tests.git_client import Completed, environment

MIRROR: Final = "https://git-mirror.example.com"

RUN_SECONDS_MAX: Final = 90.0


def real_kustomize() -> Path:
    """Return kustomize's own command line, or skip the test."""
    try:
        return program("kustomize")
    except Unavailable as error:
        pytest.skip(str(error))


def led_to(home: Path, url: str) -> dict[str, str]:
    """Return the environment of somebody at `home` whose git finds the mirror at `url`."""
    home.mkdir(parents=True)
    config = home / "gitconfig"
    config.write_text(f'[url "{url}/"]\n\tinsteadOf = {MIRROR}/\n')
    return {**environment(home), "GIT_CONFIG_GLOBAL": str(config), "TMPDIR": str(home)}


async def run(args: Sequence[str], env: Mapping[str, str]) -> Completed:
    """Run a program to its end."""
    done = await asyncio.to_thread(
        subprocess.run,
        args,
        cwd=env["HOME"],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        text=True,
        timeout=RUN_SECONDS_MAX,
    )
    return Completed(tuple(args), done.returncode, done.stdout, done.stderr)
