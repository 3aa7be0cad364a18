"""Building the clients that are no Python packages, once for what they are made of.

Each is a directory beside this file, with its dependencies pinned: Go modules, an npm package, a
Maven project. What comes out is kept in the cache, below the digest of the sources; only another
source builds anew. `python -m tests.clients.builds` builds all of them.
"""

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from tests.clients.operations import ClientFailed, Unavailable

HERE: Final = Path(__file__).parent

CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "git-mirror-tests"
"""Outside the checkout, for many runs; it may be removed at any time."""

BUILD_SECONDS_MAX: Final = 900.0

DAYS_KEPT_MAX: Final = 30
"""A build that nobody used for that long goes when there is a new one."""

# An older Go fetches the one that go.mod asks for as a module, if it may.
_GO: Final = {
    "GOTOOLCHAIN": os.environ.get("GOTOOLCHAIN", "auto"),
    "GOFLAGS": "-mod=readonly",
    "GOWORK": "off",
    "CGO_ENABLED": "0",
}


class Kind(NamedTuple):
    """A way to build.

    Attributes:
        tools: The programs that it takes, each with what to say where it is missing.
        fetch: Gets what is pinned; a failure is the registry's.
        build: Makes the program `client` in a directory, from what was got; a failure is ours.
    """

    tools: Mapping[str, str]
    fetch: Callable[[Path, Path], None]
    build: Callable[[Path, Path], None]


def program(name: str) -> Path:
    """Return the program of a client, built when nobody did before.

    Raises:
        Unavailable: A tool is missing, or what is pinned can't be had.
        ClientFailed: It does not compile.
    """
    kind = PROGRAMS[name]
    for tool, advice in kind.tools.items():
        if shutil.which(tool) is None:
            raise Unavailable(advice)
    place = _place(name)
    if not place.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with (CACHE / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the other workers of a test run wait
            if not place.exists():
                _make(kind, HERE / name, place)
    os.utime(place)
    return place / "client"


def built(name: str) -> Path | None:
    """Return the program of a client, if somebody has built it."""
    program = _place(name) / "client"
    return program if program.exists() else None


@functools.cache
def _place(name: str) -> Path:
    digest = hashlib.sha256()
    for source in sorted((HERE / name).iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return CACHE / f"{name}-{digest.hexdigest()[:16]}"


def _make(kind: Kind, source: Path, place: Path) -> None:
    for old in place.parent.glob(f"{source.name}-*"):
        if time.time() - old.stat().st_mtime > DAYS_KEPT_MAX * 86_400:
            shutil.rmtree(old)
    making = place.with_name(f".{source.name}")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir()
    try:
        kind.fetch(source, making)
    except ClientFailed as error:
        last = str(error).strip().splitlines()[-1]
        raise Unavailable(f"what {source.name} is made of can't be had: {last}") from error
    kind.build(source, making)
    making.rename(place)


def _run(*args: str, cwd: Path, env: Mapping[str, str] | None = None) -> None:
    completed = subprocess.run(
        args,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        text=True,
        timeout=BUILD_SECONDS_MAX,
    )
    if completed.returncode != 0:
        raise ClientFailed(f"{' '.join(args)}\n{completed.stdout}")


def _script(file: Path, command: str) -> None:
    file.write_text(f'#!/bin/sh\nhere=${{0%/*}}\nexec {command} "$@"\n')
    file.chmod(0o755)


# --- Go ------------------------------------------------------------------------------------------


def _fetch_modules(source: Path, making: Path) -> None:
    del making  # they go where Go keeps its modules
    _run("go", "mod", "download", cwd=source, env=_GO)


def _build_go(source: Path, making: Path) -> None:
    _run("go", "build", "-trimpath", "-o", str(making / "client"), ".", cwd=source, env=_GO)


# --- JavaScript ----------------------------------------------------------------------------------


def _fetch_packages(source: Path, making: Path) -> None:
    for file in source.iterdir():
        shutil.copy(file, making)
    _run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=making)


def _build_node(source: Path, making: Path) -> None:
    del source
    _script(making / "client", 'node "$here/main.js"')


# --- Java ----------------------------------------------------------------------------------------


def _fetch_jars(source: Path, making: Path) -> None:
    jars = f"-DoutputDirectory={making / 'lib'}"
    goal = "dependency:copy-dependencies"
    _run("mvn", "-q", "-B", goal, jars, "-DincludeScope=runtime", cwd=source)


def _build_java(source: Path, making: Path) -> None:
    classes = str(making / "classes")
    _run("javac", "-cp", f"{making}/lib/*", "-d", classes, "Client.java", cwd=source)
    quick = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"  # it lives for less than a second
    _script(making / "client", f'java {quick} -cp "$here/classes:$here/lib/*" Client')


_GO_KIND: Final = Kind({"go": "no Go toolchain on this machine"}, _fetch_modules, _build_go)
_NODE_KIND: Final = Kind(
    {"node": "no Node.js on this machine", "npm": "no npm on this machine"},
    _fetch_packages,
    _build_node,
)
_JAVA_KIND: Final = Kind(
    {"javac": "no JDK on this machine", "mvn": "no Maven on this machine"},
    _fetch_jars,
    _build_java,
)

PROGRAMS: Final[Mapping[str, Kind]] = {
    "gogit5": _GO_KIND,
    "flux": _GO_KIND,
    "gogit6": _GO_KIND,
    "kustomize": _GO_KIND,
    "receivers": _GO_KIND,
    "isomorphic": _NODE_KIND,
    "manifests": _NODE_KIND,
    "jgit": _JAVA_KIND,
}


def main() -> None:
    """Build every program, and say how long each took."""
    for name in PROGRAMS:
        began = time.monotonic()
        try:
            program(name)
        except Unavailable as error:
            sys.stdout.write(f"{name}: left out, {error}\n")
        else:
            sys.stdout.write(f"{name}: ready after {time.monotonic() - began:.0f} s\n")


if __name__ == "__main__":
    main()
