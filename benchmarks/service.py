"""The mirror under test: `git-mirror serve` as a process of its own, seen from outside."""

import contextlib
import hashlib
import hmac
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from benchmarks.http_client import Request, WrongAnswer, ask_once
from benchmarks.processes import free_port, is_listening, running, wait_until

MIRRORED_SECONDS_MAX: Final = 300.0
SECRET: Final = "benchmark-webhook-secret"
_SAMPLE: Final = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")
_deliveries = itertools.count(1)


class Service:
    """A running mirror."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int, directory: Path) -> None:
        self.port = port
        self.directory = directory
        self.log = directory / "serve.log"
        self._process = process

    @property
    def data(self) -> Path:
        return self.directory / "data"

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/{name}"

    def status(self) -> dict[str, Any]:
        """Return the repositories of /status.json."""
        return json.loads(ask_once(self.port, Request("/status.json")))["repositories"]

    def wait_until_mirrored(self, names: frozenset[str] | None = None) -> None:
        """Wait until these repositories (all of them) are fresh."""

        def is_fresh() -> bool:
            found = self.status()
            return all(found[name]["state"] == "fresh" for name in names or found)

        wait_until(is_fresh, process=self._process, log=self.log, seconds_max=MIRRORED_SECONDS_MAX)

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of all samples of that name that have these labels."""
        total = 0.0
        for line in ask_once(self.port, Request("/metrics")).decode().splitlines():
            sample = _SAMPLE.match(line)
            if sample is None or sample[1] != name:
                continue
            if all(f'{key}="{value}"' in (sample[2] or "") for key, value in labels.items()):
                total += float(sample[3])
        return total

    def refreshes(self) -> float:
        return self.metric("git_mirror_refresh_seconds_count")

    def builds(self) -> float:
        large = self.metric("git_mirror_pack_build_seconds_count", outcome="ok")
        return large + self.metric("git_mirror_small_pack_build_seconds_count")

    def sync(self, name: str) -> None:
        """Have a repository refreshed from the command line, and wait for it."""
        arguments = ["sync", name, "--config", str(self.directory / "mirror.yaml")]
        subprocess.run(
            [sys.executable, "-m", "mirror", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            timeout=MIRRORED_SECONDS_MAX,
        )

    def memory_mb(self, field: str = "VmRSS") -> float:
        """Return the memory of the mirror's own processes, without git's."""
        return sum(_status_kb(pid, field) for pid in self.processes()) / 1024

    def processor_ms(self) -> float:
        """Return the processor time of the mirror's processes and of the git that they ran."""
        return sum(map(_processor_ms, self.processes()))

    def open_files(self) -> int:
        """Return how many file descriptors the mirror's own processes have."""
        return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in self.processes())

    def forget_peak(self) -> None:
        """Have the kernel begin anew with VmHWM (proc(5), clear_refs)."""
        for pid in self.processes():
            Path(f"/proc/{pid}/clear_refs").write_text("5")

    def processes(self) -> tuple[int, ...]:
        """Return the service and its workers: children that are the same program."""
        main = self._process.pid
        pids = [main]
        program = Path(f"/proc/{main}/exe").readlink()
        for task in Path(f"/proc/{main}/task").iterdir():
            for child in (task / "children").read_text().split():
                with contextlib.suppress(OSError):
                    if Path(f"/proc/{child}/exe").readlink() == program:
                        pids.append(int(child))
        return tuple(pids)

    def announce(self, name: str, upstream: str, *, before: str, after: str) -> None:
        """Deliver the webhook of a push to main, signed as GitHub does.

        Raises:
            WrongAnswer: It was not accepted.
        """
        ask_once(self.port, push_event(name, upstream, before=before, after=after), status=202)


def push_event(name: str, upstream: str, *, before: str, after: str) -> Request:
    """Return the delivery of a push."""
    payload = {
        "ref": "refs/heads/main",
        "before": before,
        "after": after,
        "repository": {
            "full_name": name,
            "clone_url": upstream,
            "html_url": upstream.removesuffix(".git"),
            "default_branch": "main",
        },
    }
    body = json.dumps(payload).encode()
    digest = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    headers = (
        ("Content-Type", "application/json"),
        ("X-GitHub-Event", "push"),
        ("X-GitHub-Delivery", f"{after}-{next(_deliveries)}"),
        ("X-Hub-Signature-256", f"sha256={digest}"),
    )
    return Request("/webhooks/github", "POST", headers, body)


def _status_kb(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise WrongAnswer(f"process {pid} has no {field}")


def _processor_ms(pid: int) -> float:
    """Return the processor time of a process and of its children that ended (proc(5), stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) * 1000 / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def open_service(
    directory: Path,
    upstreams: Mapping[str, str],
    *,
    overrides: Mapping[str, Any],
    wait_for: frozenset[str] | None = None,
) -> Iterator[Service]:
    """Run a mirror of these upstreams, until the end of the block.

    Args:
        directory: For its files; `data` in it may hold mirrors already.
        upstreams: URLs by repository name.
        overrides: Dotted configuration keys and their values, such as `server.workers`.
        wait_for: The repositories that must be mirrored before the block begins; all by default.
    """
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    (directory / "secret").touch(mode=0o600)
    (directory / "secret").write_text(SECRET + "\n")
    document: dict[str, Any] = {
        "server": {"listen": f"127.0.0.1:{port}"},
        "data_dir": "data",
        "log": {"format": "json", "level": "warning"},
        # Upstreams are asked when a row says so, never in the middle of a measurement.
        "defaults": {
            "poll_interval": "never",
            "webhook_secret_file": "secret",
        },
        "repositories": {
            name: {"upstream": url, "forge": "github"} for name, url in upstreams.items()
        },
    }
    for key, value in overrides.items():
        *path, last = key.split(".")
        place = document
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    config = directory / "mirror.yaml"
    config.write_text(yaml.safe_dump(document))
    log = directory / "serve.log"
    arguments = [sys.executable, "-m", "mirror", "serve", "--config", config]
    with running(arguments, log=log) as process:
        wait_until(
            lambda: is_listening(port),
            process=process,
            log=log,
            seconds_max=MIRRORED_SECONDS_MAX,
        )
        service = Service(process, port, directory)
        if wait_for is None or wait_for:
            service.wait_until_mirrored(wait_for)
        yield service
