"""The play: clone, push, webhook, fetch, and what each cost directly and through the mirror.

Every part is real: an upstream served by git's own http-backend, `git-mirror serve` as a process
of its own, the git client. Only the distance is made: 100 ms there and back, by `latency`. Each
step is verified by the id of the commit that it brought.
"""

import asyncio
import hashlib
import hmac
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
from rich.console import Console
from rich.table import Table

from mirror.demo import gitops_repo
from mirror.demo.forge import HttpBackend
from mirror.demo.latency import LatencyProxy
from mirror.errors import LocalError

RTT_SECONDS: Final = 0.1
ROUNDS: Final = 3
STEP_SECONDS_MAX: Final = 60.0
SECRET: Final = "demo-webhook-secret"  # noqa: S105 - shown to the user with --keep

console = Console(highlight=False, soft_wrap=True)


class StepFailed(LocalError):
    """A step of the demonstration did not bring what it should have."""

    label = "demo_failed"


@dataclass(frozen=True, slots=True)
class Stage:
    """Where everything is.

    Attributes:
        directory: All files of the play.
        bare: The upstream's repository on disk, for what CI does there.
        direct_url: The upstream's URL, 100 ms away.
        mirror_url: The mirror's URL for the same repository.
        service_url: The mirror itself.
    """

    directory: Path
    bare: Path
    direct_url: str
    mirror_url: str
    service_url: str


@dataclass(slots=True)
class Timings:
    """Seconds of each step, by row of the table."""

    direct: dict[str, list[float]]
    mirrored: dict[str, list[float]]
    webhook_to_fetched: list[float]


async def play(*, keep: bool) -> bool:
    """Play it all; returns whether every step was verified.

    Args:
        keep: Leave everything running until Ctrl-C.

    Raises:
        LocalError: Something that it needs is missing here.
    """
    if shutil.which("git") is None:
        raise LocalError("the demonstration needs git on this machine: apt-get install git")
    with tempfile.TemporaryDirectory(prefix="git-mirror-demo-") as name:
        async with _set_stage(Path(name)) as stage:
            try:
                timings = await _play(stage)
            except StepFailed as error:
                console.print(f"[red]not verified:[/] {error}")
                return False
            _print_table(timings)
            if keep:
                await _leave_running(stage)
    return True


@asynccontextmanager
async def _set_stage(directory: Path) -> AsyncIterator[Stage]:
    upstreams = directory / "upstream"
    bare = upstreams / f"{gitops_repo.NAME}.git"
    await asyncio.to_thread(gitops_repo.create, bare)
    async with (
        HttpBackend(upstreams) as forge,
        LatencyProxy("127.0.0.1", forge.port, RTT_SECONDS) as line,
    ):
        direct_url = f"{line.url}/{gitops_repo.NAME}.git"
        console.print(f"upstream   {direct_url}  (git http-backend, 100 ms away)")
        config = _write_config(directory, direct_url)
        async with _serve(config, directory / "serve.log") as service_url:
            mirror_url = f"{service_url}/{gitops_repo.NAME}"
            console.print(f"mirror     {mirror_url}")
            yield Stage(directory, bare, direct_url, mirror_url, service_url)


def _write_config(directory: Path, upstream: str) -> Path:
    secret = directory / "webhook-secret"
    secret.touch(mode=0o600)
    secret.write_text(SECRET + "\n")
    config = directory / "mirror.yaml"
    config.write_text(
        f"""\
server:
  listen: 127.0.0.1:0
data_dir: data
log:
  format: json
repositories:
  {gitops_repo.NAME}:
    upstream: {upstream}
    forge: github
    webhook_secret_file: webhook-secret
"""
    )
    return config


@asynccontextmanager
async def _serve(config: Path, log: Path) -> AsyncIterator[str]:
    """Run `git-mirror serve` until the end; gives its URL once the repository is mirrored."""
    with log.open("wb") as output:
        process = await asyncio.to_thread(
            subprocess.Popen,
            [sys.executable, "-m", "mirror", "serve", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield await _until_mirrored(process, log)
    finally:
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, STEP_SECONDS_MAX)


async def _until_mirrored(process: "subprocess.Popen[bytes]", log: Path) -> str:
    """Follow the service's log until it says that it serves and has published."""
    url = None
    deadline = time.monotonic() + STEP_SECONDS_MAX
    while time.monotonic() < deadline and process.poll() is None:
        for line in (await asyncio.to_thread(log.read_text)).splitlines():
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("event") == "serving":
                url = event["url"]
            if event.get("event") == "published" and url is not None:
                return str(url)
        await asyncio.sleep(0.02)
    said = await asyncio.to_thread(log.read_text)
    raise StepFailed(f"git-mirror serve did not start; its log says:\n{said[-2000:]}")


@dataclass(frozen=True, slots=True)
class _Clones:
    """The controllers.

    Attributes:
        direct: Fetches from the upstream.
        first: Fetches from the mirror as soon as a push is announced.
        next: Fetches the same a moment later: what all others see.
    """

    direct: Path
    first: Path
    next: Path


async def _play(stage: Stage) -> Timings:
    timings = Timings({}, {}, [])
    tip = (await _git("rev-parse", "main", cwd=stage.bare)).strip()
    clones = _Clones(*(stage.directory / name for name in ("direct", "first", "next")))
    await _git("clone", "--quiet", stage.direct_url, str(clones.direct))
    await _git("clone", "--quiet", stage.mirror_url, str(clones.first))
    await _git("clone", "--quiet", stage.mirror_url, str(clones.next))
    for clone in (clones.direct, clones.first, clones.next):
        await _verify(clone, "HEAD", tip)
    console.print(f"cloned     main is {tip[:12]} on both ways")
    for number in range(ROUNDS):
        await _one_round(stage, timings, clones, number)
    return timings


async def _one_round(stage: Stage, timings: Timings, clones: _Clones, number: int) -> None:
    """CI pushes an image-tag bump; its webhook is delivered; all clones fetch it."""
    tag = f"1.{13 + number}.0"
    bump = await asyncio.to_thread(gitops_repo.bump_image_tag, stage.bare, tag)
    pushed_at = time.perf_counter()
    await _deliver_webhook(stage, before=bump.parent, after=bump.commit)

    async def fetch(clone: Path) -> None:
        await _git("fetch", "--quiet", "origin", cwd=clone)
        await _verify(clone, "origin/main", bump.commit)

    await fetch(clones.first)
    timings.webhook_to_fetched.append(time.perf_counter() - pushed_at)
    console.print(f"pushed     image tag {tag}: {bump.commit[:12]}, webhook delivered, fetched")
    for way, clone, url in (
        (timings.mirrored, clones.next, stage.mirror_url),
        (timings.direct, clones.direct, stage.direct_url),
    ):
        await _timed(way, "poll (git ls-remote)", _poll(url, bump.commit))
        await _timed(way, "fetch of one commit (git fetch)", fetch(clone))
        await _timed(
            way,
            "fresh clone (git clone --depth 1)",
            _clone_shallow(stage, url, bump.commit),
        )


async def _timed(way: dict[str, list[float]], row: str, step: Awaitable[None]) -> None:
    began_at = time.perf_counter()
    await step
    way.setdefault(row, []).append(time.perf_counter() - began_at)


async def _poll(url: str, commit: str) -> None:
    listed = await _git("ls-remote", url, "refs/heads/main")
    if listed.split()[:1] != [commit]:
        raise StepFailed(f"{url} lists {listed.strip() or 'nothing'} for main, not {commit}")


async def _clone_shallow(stage: Stage, url: str, commit: str) -> None:
    place = stage.directory / "shallow"
    try:
        await _git("clone", "--quiet", "--depth", "1", url, str(place))
        await _verify(place, "HEAD", commit)
    finally:
        await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)


async def _verify(clone: Path, revision: str, commit: str) -> None:
    found = (await _git("rev-parse", revision, cwd=clone)).strip()
    if found != commit:
        raise StepFailed(f"{clone.name}: {revision} is {found}, not {commit}")


async def _deliver_webhook(stage: Stage, *, before: str, after: str) -> None:
    """Deliver the push event as GitHub does, signed."""
    payload: dict[str, Any] = {
        "ref": "refs/heads/main",
        "before": before,
        "after": after,
        "repository": {
            "full_name": gitops_repo.NAME,
            "clone_url": stage.direct_url,
            "html_url": stage.direct_url.removesuffix(".git"),
            "default_branch": "main",
        },
    }
    body = json.dumps(payload).encode()
    digest = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    headers = {
        "Content-Type": "application/json",
        "X-GitHub-Event": "push",
        "X-GitHub-Delivery": after,
        "X-Hub-Signature-256": f"sha256={digest}",
    }
    url = f"{stage.service_url}/webhooks/github"
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, data=body, headers=headers) as answer,
    ):
        if answer.status != 202:
            raise StepFailed(f"the webhook was answered {answer.status}: {await answer.text()}")


async def _git(*arguments: str, cwd: Path | None = None) -> str:
    """Run the user's git, without the user's settings."""

    def run() -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["git", *arguments],
            cwd=cwd,
            env={
                "PATH": "/usr/local/bin:/usr/bin:/bin",
                "HOME": "/nonexistent",
                "GIT_CONFIG_NOSYSTEM": "1",
                "GIT_CONFIG_GLOBAL": "/dev/null",
                "GIT_TERMINAL_PROMPT": "0",
                "LC_ALL": "C",
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=STEP_SECONDS_MAX,
            check=False,
        )

    try:
        done = await asyncio.to_thread(run)
    except subprocess.TimeoutExpired:
        raise StepFailed(f"git {arguments[0]} took over {STEP_SECONDS_MAX:.0f} s") from None
    if done.returncode != 0:
        raise StepFailed(f"git {' '.join(arguments)} failed: {done.stderr.strip()}")
    return done.stdout


def _print_table(timings: Timings) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("", "direct", "through the mirror", ""):
        table.add_column(heading, justify="left" if not heading else "right")
    for row, direct in timings.direct.items():
        far, near = statistics.median(direct), statistics.median(timings.mirrored[row])
        table.add_row(row, _milliseconds(far), _milliseconds(near), f"{far / near:.0f}x faster")
    fetched = statistics.median(timings.webhook_to_fetched)
    table.add_row("push: webhook delivered, then fetched", "", _milliseconds(fetched), "")
    console.print()
    console.print(table)
    console.print(
        f"\nMedians of {ROUNDS} rounds of whole git processes; every commit verified by its id.",
        style="dim",
    )


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


async def _leave_running(stage: Stage) -> None:
    """Print where everything is, and wait for Ctrl-C."""
    console.print(
        f"""
Left running until Ctrl-C:
  clone through the mirror   git clone {stage.mirror_url}
  the upstream, 100 ms away  git clone {stage.direct_url}   (takes pushes)
  webhooks                   {stage.service_url}/webhooks/github   (secret: {SECRET})
  status, metrics            {stage.service_url}/status.json  {stage.service_url}/metrics
  configuration, data        {stage.directory}/mirror.yaml
""".rstrip(),
        soft_wrap=True,
    )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()
