"""The image, really built and really run: as nobody, on a root that can't be written.

`make test-image` builds it, in two minutes. The Dockerfile is linted in any case.
"""

import asyncio
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import aiohttp
import pytest

from mirror.demo.forge import HttpBackend
from tests.git_client import GitClient, Upstream
from tests.mirror_service import NAME
from tests.packaging.debian import Unbuildable
from tests.packaging.image import DOCKERFILE, LIMITS, Podman

pytestmark = pytest.mark.timeout(1800)  # the first builds it

UID = 10001
STARTED_SECONDS_MAX = 60.0
built = pytest.mark.skipif("not config.getoption('--image')", reason="make test-image builds it")


def test_the_dockerfile_has_nothing_to_complain_of() -> None:
    hadolint = shutil.which("hadolint", path=os.pathsep.join((*_scripts(), os.environ["PATH"])))
    if hadolint is None:
        pytest.skip("hadolint has no wheel for this machine")
    done = subprocess.run([hadolint, str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def _scripts() -> Iterator[str]:
    import sysconfig  # noqa: PLC0415 - for this alone

    yield sysconfig.get_path("scripts")


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Podman:
    """Podman, with the image."""
    podman = Podman(tmp_path_factory.mktemp("podman"))
    try:
        podman.build()
    except Unbuildable as error:
        pytest.skip(str(error))
    return podman


@built
async def test_it_serves_without_a_right_and_ends_when_told(
    podman: Podman, forge: HttpBackend, upstream: Upstream, git_client: GitClient, tmp_path: Path
) -> None:
    port = _free_port()
    config, data = tmp_path / "etc", tmp_path / "data"
    config.mkdir()
    data.mkdir()
    os.chown(data, UID, UID)
    (config / "mirror.yaml").write_text(
        json.dumps(
            {
                "server": {"listen": f"127.0.0.1:{port}"},
                "repositories": {NAME: {"upstream": forge.repository_url(upstream.name)}},
            }
        )
    )

    async def run(*args: str) -> str:
        return await asyncio.to_thread(podman, *args)  # the forge is in this process

    await run(
        *("run", "--detach", "--name=mirror", "--network=host", *LIMITS),
        *("--read-only", "--read-only-tmpfs=false", "--cap-drop=all"),
        *("--security-opt=no-new-privileges", f"--volume={config}:/etc/git-mirror:ro"),
        *(f"--volume={data}:/var/lib/git-mirror", "localhost/git-mirror"),
    )
    try:
        await _answered(f"http://127.0.0.1:{port}/healthz")
        await run("exec", "mirror", "git-mirror", "sync", NAME)
        clone = await git_client.clone(f"http://127.0.0.1:{port}/{NAME}")
        assert await git_client.rev_parse(clone, "HEAD") == upstream.oid()
        await git_client.fsck(clone)
        assert await run("healthcheck", "run", "mirror") == ""
        assert (await run("exec", "mirror", "id", "-u")).strip() == str(UID)
        with pytest.raises(AssertionError, match="Read-only file system"):
            await run("exec", "mirror", "touch", "/opt/git-mirror/x")
    finally:
        await run("stop", "--time=30", "mirror")
    assert (await run("inspect", "mirror", "--format={{.State.ExitCode}}")).strip() == "0"
    await run("rm", "mirror")
    assert {path.stat().st_uid for path in data.rglob("*")} == {UID}


@built
def test_nothing_is_in_it_that_builds_or_installs(podman: Podman) -> None:
    entry = ["run", "--rm", *LIMITS, "--network=none", "--entrypoint=sh", "localhost/git-mirror"]
    found = podman(*entry, "-c", "command -v pip gcc cc make uv hatchling; true")
    assert found == ""
    libraries = podman(*entry, "-c", "ls /opt/git-mirror/lib/python3*/site-packages")
    assert "mirror" in libraries.split()
    assert not {"pip", "hatchling", "setuptools"} & set(libraries.split())


async def _answered(url: str) -> None:
    """Wait until it serves; the container's start does not."""
    async with asyncio.timeout(STARTED_SECONDS_MAX), aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(url):
                    return
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.1)  # nobody tells


def _free_port() -> int:
    with closing(socket.socket()) as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])
