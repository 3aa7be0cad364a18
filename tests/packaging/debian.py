"""A Debian to build on and to boot, made by debootstrap once and kept for later runs.

It lies in the cache of the tests' clients, which may be removed at any time.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.clients.builds import CACHE, DAYS_KEPT_MAX

ROOT: Final = Path(__file__).parents[2]
SUITE: Final = "bookworm"
PYTHON: Final = "3.11"
"""The suite's."""

SECONDS_MAX: Final = 900
AUTHORITIES: Final = Path("/etc/ssl/certs/ca-certificates.crt")


class Unbuildable(Exception):
    """A tool is missing on this machine, or there is nothing to build from."""


def run(*args: str) -> str:
    """Run a command in the checkout; returns what it prints.

    Raises:
        AssertionError: It failed.
    """
    done = subprocess.run(args, capture_output=True, timeout=SECONDS_MAX, check=False, cwd=ROOT)
    if done.returncode != 0:
        said = (done.stdout + done.stderr).decode("utf-8", "replace")
        raise AssertionError(f"{' '.join(args)}: exit code {done.returncode}\n{said[-4000:]}")
    return done.stdout.decode()


def need(*tools: str) -> None:
    """See that this is root, and that these programs are here.

    Raises:
        Unbuildable: They are not.
    """
    if os.getuid() != 0:
        raise Unbuildable("debootstrap wants root")
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        raise Unbuildable(f"install {', '.join(missing)}")


def debian(*packages: str) -> Path:
    """Return the root of a minimal Debian with these packages; nothing may write there.

    Raises:
        Unbuildable: This machine can't make one.
    """
    need("debootstrap", "apt-get")
    digest = hashlib.sha256(" ".join([SUITE, *sorted(packages)]).encode()).hexdigest()[:16]
    return _kept(f"debian-{digest}", lambda making: _bootstrap(making, packages))


def wheels() -> Path:
    """Return a directory with all wheels of the lock, for the Python of that Debian."""
    lock = ROOT / "requirements" / "run.lock"
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()[:16]
    return _kept(f"wheels-{digest}", lambda making: _download(making, lock))


def _kept(name: str, make: Callable[[Path], None]) -> Path:
    place = CACHE / name
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists() or time.time() - place.stat().st_mtime > DAYS_KEPT_MAX * 86_400:
            shutil.rmtree(place, ignore_errors=True)
            making = CACHE / f".{name}"
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir()
            make(making)
            making.rename(place)
    return place


def _bootstrap(making: Path, packages: tuple[str, ...]) -> None:
    mirror = run("apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages")
    if not mirror:
        raise Unbuildable("apt-get knows no mirror of Debian: run apt-get update first")
    include = f"--include={','.join(packages)}"
    # In a mount namespace of its own: where it is cut off, no mount is left behind.
    isolated = ["unshare", "--mount", "--fork", "--kill-child"]
    from_there = mirror.splitlines()[0]
    run(*isolated, "debootstrap", "--variant=minbase", include, SUITE, str(making), from_there)
    if AUTHORITIES.is_file():  # the machine's own, by which it reaches its package indexes
        shutil.copy(AUTHORITIES, making / AUTHORITIES.relative_to("/"))
    os.utime(making)


def _download(making: Path, lock: Path) -> None:
    pinned = ["--require-hashes", "--no-deps", f"--requirement={lock}"]
    fitting = ["--only-binary=:all:", f"--python-version={PYTHON}", f"--dest={making}"]
    run(sys.executable, "-m", "pip", "download", "--quiet", *pinned, *fitting)
