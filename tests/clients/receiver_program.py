"""Building and running `receivers`: the libraries that real receivers of events use.

The program is built once for what it is made of, and kept in the user's cache. Where that can't be
done the tests say why and are skipped.
"""

import asyncio
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.mirror_service import WAIT_SECONDS_MAX

SOURCE: Final = Path(__file__).parent / "receivers"
CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "git-mirror-tests"
BUILD_SECONDS_MAX: Final = 600.0

_GO: Final = {"GOFLAGS": "-mod=readonly", "GOWORK": "off", "CGO_ENABLED": "0"}


def program() -> Path:
    """Return the program, built when nobody did before; skips the test where it can't be."""
    if shutil.which("go") is None:
        pytest.skip("there is no Go here to build the receivers with")
    digest = hashlib.sha256()
    for file in sorted(SOURCE.iterdir()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    place = CACHE / f"receivers-{digest.hexdigest()[:16]}"
    if not place.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with (CACHE / "receivers.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the other workers of a test run wait
            if not place.exists():
                _build(place)
    return place / "client"


def _build(place: Path) -> None:
    fetched = _go("mod", "download")
    if fetched.returncode != 0:
        last = fetched.stdout.strip().splitlines()[-1]
        pytest.skip(f"the modules of the receivers can't be had: {last}")
    making = place.with_name(".receivers")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir()
    built = _go("build", "-trimpath", "-o", str(making / "client"), ".")
    assert built.returncode == 0, built.stdout
    making.rename(place)


def _go(*args: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["go", *args],
        cwd=SOURCE,
        env=os.environ | _GO,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        text=True,
        timeout=BUILD_SECONDS_MAX,
    )


class RealReceivers:
    """The running program.

    Attributes:
        url: Where it listens.
        records: What it wrote of each request, the oldest first.
    """

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.url = ""
        self.records: list[dict[str, Any]] = []
        self._process = process

    async def read(self) -> dict[str, Any]:
        """Wait for the next line, and return it."""
        assert self._process.stdout is not None
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            line = await asyncio.to_thread(self._process.stdout.readline)
        found: dict[str, Any] = json.loads(line)
        return found

    async def next(self, path: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait until so many requests came to a path, and return what became of them."""
        while len(found := [one for one in self.records if one["path"].startswith(path)]) < count:
            self.records.append(await self.read())
        return found


@asynccontextmanager
async def real_receivers(setup: dict[str, Any]) -> AsyncIterator[RealReceivers]:
    """Run the program with what it is to know."""
    built = await asyncio.to_thread(program)
    process = await asyncio.to_thread(
        subprocess.Popen, [built], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(setup).encode() + b"\n")
        process.stdin.close()
        running = RealReceivers(process)
        running.url = f"http://127.0.0.1:{(await running.read())['port']}"
        yield running
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)
        process.stdout.close()
