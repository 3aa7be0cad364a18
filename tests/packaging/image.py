"""The image of the Dockerfile, built by podman on a Debian that debootstrap makes."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
DOCKERFILE: Final = ROOT / "Dockerfile"

SUITE: Final = "bookworm"
TOOLS: Final = ("podman", "runc", "debootstrap", "apt-get")
SECONDS_MAX: Final = 900
AUTHORITIES: Final = Path("/etc/ssl/certs/ca-certificates.crt")
LIMITS: Final = ("--ulimit=nofile=4096:4096", "--ulimit=nproc=4096:4096")
"""Podman's own are above what a machine may allow."""


class Unbuildable(Exception):
    """There is no builder on this machine, or nothing to build from."""


def _run(*args: str, stdin: bytes | None = None) -> str:
    done = subprocess.run(
        args, input=stdin, capture_output=True, timeout=SECONDS_MAX, check=False, cwd=ROOT
    )
    if done.returncode != 0:
        said = (done.stdout + done.stderr).decode("utf-8", "replace")
        raise AssertionError(f"{' '.join(args)}: exit code {done.returncode}\n{said[-4000:]}")
    return done.stdout.decode()


@dataclass(frozen=True)
class Podman:
    """Images and containers in a directory of their own."""

    place: Path

    def __call__(self, *args: str) -> str:
        """Run podman; returns what it prints.

        Raises:
            AssertionError: It failed.
        """
        return _run(
            "podman",
            f"--root={self.place / 'storage'}",
            f"--runroot={self.place / 'run'}",
            "--storage-driver=vfs",
            "--cgroup-manager=cgroupfs",
            "--runtime=runc",
            *args,
        )

    def build(self) -> str:
        """Build the image on a fresh Debian; returns its name.

        Raises:
            Unbuildable: This machine can't.
        """
        base = self._base()
        # The health check is an extension of Docker's, which the other format leaves out.
        on = ["--network=host", "--isolation=chroot", "--pull=never", "--format=docker"]
        self("build", *on, *LIMITS, f"--build-arg=BASE={base}", "--tag=git-mirror", ".")
        return "localhost/git-mirror"

    def _base(self) -> str:
        missing = [tool for tool in TOOLS if shutil.which(tool) is None]
        if missing:
            raise Unbuildable(f"to build an image, install {', '.join(missing)}")
        mirror = _run("apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages")
        if not mirror:
            raise Unbuildable("apt-get knows no mirror of Debian: run apt-get update first")
        root = self.place / "debian"
        variant = ["--variant=minbase", "--include=ca-certificates"]
        _run("debootstrap", *variant, SUITE, str(root), mirror.splitlines()[0])
        if AUTHORITIES.is_file():  # the machine's own, by which it reaches its package indexes
            shutil.copy(AUTHORITIES, root / AUTHORITIES.relative_to("/"))
        archive = self.place / "debian.tar"
        _run("tar", "--create", f"--file={archive}", f"--directory={root}", ".")
        shutil.rmtree(root)
        self("import", str(archive), "localhost/debian")
        archive.unlink()
        return "localhost/debian"
