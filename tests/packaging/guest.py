"""A Debian that systemd runs as process 1, in namespaces of this machine, and what is done in it.

It shares the network of the thread that boots it, which `loopback_of_its_own` makes one that leads
nowhere: the units' own port is free there, whatever else runs on this machine.
"""

import asyncio
import contextlib
import ctypes
import fcntl
import os
import shlex
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.packaging.debian import Unbuildable, debian, need

PACKAGES: Final = (
    *("ca-certificates", "systemd", "systemd-sysv"),
    *("python3", "python3-venv", "git", "curl"),
)
BOOT_SECONDS_MAX: Final = 180.0
COMMAND_SECONDS_MAX: Final = 240.0
_CLONE_NEWNET: Final = 0x40000000
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1


@contextmanager
def loopback_of_its_own() -> Iterator[None]:
    """Give this thread, and what it starts, a network with nothing but a loopback interface.

    Raises:
        Unbuildable: This machine does not let us.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as before:  # noqa: PTH123 - held, not read
        if libc.unshare(_CLONE_NEWNET) != 0:
            raise Unbuildable(f"no network namespace: {os.strerror(ctypes.get_errno())}")
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
                fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP))
            yield
        finally:
            libc.setns(before.fileno(), _CLONE_NEWNET)


class Guest:
    """The booted system."""

    def __init__(self) -> None:
        self._name = f"git-mirror-guest-{os.getpid()}"
        self._place = Path(tempfile.mkdtemp(prefix="guest-"))
        self._starter: subprocess.Popen[bytes] | None = None
        self._init = 0

    def boot(self) -> None:
        """Boot it, and wait until all units are started.

        Raises:
            Unbuildable: This machine does not let us.
            AssertionError: It does not come up.
        """
        need("unshare", "nsenter", "setpriv", "pivot_root")
        base = debian(*PACKAGES)
        boot = Path(__file__).with_name("boot.sh")
        self._starter = subprocess.Popen(
            ["sh", str(boot), str(base), str(self._place), self._name],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        children = Path(f"/proc/{self._starter.pid}/task/{self._starter.pid}/children")
        deadline = time.monotonic() + BOOT_SECONDS_MAX
        while True:
            if self._starter.poll() is not None:
                assert self._starter.stderr is not None
                said = self._starter.stderr.read().decode().strip()
                raise Unbuildable(f"namespaces, cgroups and mounts of its own are refused: {said}")
            if found := children.read_text().split():
                self._init = int(found[0])
                with contextlib.suppress(OSError):
                    if Path(f"/proc/{self._init}/comm").read_text() == "systemd\n":
                        break
            assert time.monotonic() < deadline, "systemd is not started"
            time.sleep(0.05)  # nobody tells
        while "running" not in (said := self.sh("systemctl is-system-running --wait 2>&1 || true")):
            assert time.monotonic() < deadline, f"{said}{self.sh('systemctl --failed || true')}"
            time.sleep(0.1)

    def close(self) -> None:
        """End it, with all that runs in it."""
        if self._init:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._init, signal.SIGKILL)
        if self._starter is not None:
            self._starter.kill()
            self._starter.communicate()
        self._place.rmdir()  # its mounts were in a namespace that has gone
        for top, directories, _ in os.walk("/sys/fs/cgroup"):
            if self._name in directories:
                directories[:] = []
                group = Path(top, self._name)
                for each in (*sorted(group.rglob("*/"), reverse=True), group):
                    self._remove(each)

    @staticmethod
    def _remove(group: Path) -> None:
        for _ in range(100):
            try:
                group.rmdir()
            except FileNotFoundError:
                return
            except OSError:
                time.sleep(0.05)  # the last process is still going
            else:
                return

    def path(self, path: str) -> Path:
        """Return where a file of its lies, as seen from here."""
        return Path(f"/proc/{self._init}/root{path}")

    def sh(self, script: str, *, check: bool = True) -> str:
        """Run a shell script as its root; returns what that prints, errors included.

        Raises:
            AssertionError: A command of it failed; not where `check` is off.
        """
        done = subprocess.run(
            [
                *("nsenter", f"--target={self._init}", "--mount", "--pid", "--uts", "--ipc"),
                *("--cgroup", "--root", "--wdns=/root"),
                *("env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
                *("HOME=/root", "LANG=C.UTF-8", "SYSTEMD_PAGER=cat", "SYSTEMD_COLORS=0"),
                *("sh", "-euc", script),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=COMMAND_SECONDS_MAX,
        )
        assert not check or done.returncode == 0, f"{script}\n{done.returncode}\n{done.stdout}"
        return done.stdout

    async def run(self, script: str, *, check: bool = True) -> str:
        """Do as `sh`, while the loop turns."""
        return await asyncio.to_thread(self.sh, script, check=check)

    async def show(self, *names: str, unit: str = "git-mirror.service") -> dict[str, str]:
        """Return properties of a unit."""
        wanted = " ".join(f"--property={name}" for name in names)
        said = await self.run(f"systemctl show {wanted} {shlex.quote(unit)}")
        return dict(line.split("=", 1) for line in said.splitlines())
