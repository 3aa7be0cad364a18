"""The programs that rows need, and the Debian packages they come in."""

import os
import shutil
import subprocess
from functools import cache
from typing import Final

PACKAGES: Final = {
    "git": "git",
    "nginx": "nginx-light",
    "fcgiwrap": "fcgiwrap",
    "wrk": "wrk",
}
APT_SECONDS_MAX: Final = 300


def missing(programs: tuple[str, ...]) -> str:
    """Return what to do about the programs that are not there; empty if all are.

    Root on Debian gets them installed, as the Makefile does with python3-venv.
    """
    absent = [PACKAGES[each] for each in programs if path_of(each) is None]
    if absent and os.geteuid() == 0 and shutil.which("apt-get"):
        _install(tuple(absent))
        absent = [PACKAGES[each] for each in programs if path_of(each) is None]
    return f"run: sudo apt-get install {' '.join(absent)}" if absent else ""


def path_of(program: str) -> str | None:
    """Return where a program is; daemons may stand outside a user's PATH."""
    return shutil.which(program, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")


@cache  # once per run: what could not be installed will not be the next time
def _install(packages: tuple[str, ...]) -> None:
    print(f"Installing {', '.join(packages)} with apt-get ...", flush=True)
    # Debian starts daemons that it installs; ours have their own configuration and ports.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for arguments in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends"]):
        more = packages if arguments[0] == "install" else ()
        subprocess.run(
            ["apt-get", *arguments, *more],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
            timeout=APT_SECONDS_MAX,
        )
