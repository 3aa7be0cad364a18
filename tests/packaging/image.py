"""The image of the Dockerfile, built by podman on a Debian that debootstrap makes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.packaging.debian import ROOT, debian, need, run

DOCKERFILE: Final = ROOT / "Dockerfile"

LIMITS: Final = ("--ulimit=nofile=4096:4096", "--ulimit=nproc=4096:4096")
"""Podman's own are above what a machine may allow."""


@dataclass(frozen=True)
class Podman:
    """Images and containers in a directory of their own."""

    place: Path

    def __call__(self, *args: str) -> str:
        """Run podman; returns what it prints.

        Raises:
            AssertionError: It failed.
        """
        return run(
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
        on.append("--layers=false")  # else each step copies the whole tree
        self("build", *on, *LIMITS, f"--build-arg=BASE={base}", "--tag=git-mirror", ".")
        return "localhost/git-mirror"

    def _base(self) -> str:
        need("podman", "runc", "tar")
        root = debian("ca-certificates")
        archive = self.place / "debian.tar"
        run("tar", "--create", f"--file={archive}", f"--directory={root}", ".")
        self("import", str(archive), "localhost/debian")
        archive.unlink()
        return "localhost/debian"
