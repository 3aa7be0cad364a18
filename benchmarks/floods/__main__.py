"""`make flood`: what a well-behaved client's polls take while others misbehave.

The mirror, the flood and the prober are processes of their own. In life those who flood are other
machines; here they share the processors, so they run when nobody else wants to (SCHED_IDLE), and
right before each flood the same prober polls beside a process that is as busy and leaves the mirror
alone: the figures that count are the ratios to that. The prober, which in life is another machine,
runs as soon as there is an answer, where the kernel can do that. All stays on 127.0.0.1, bounded in
count and time.
"""

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from benchmarks.floods.kinds import CONTROLS, FLOODS, OVER_TLS, OVER_UNIX, Flood, Target
from benchmarks.floods.prober import POLL_SECONDS, Prober
from benchmarks.git import git
from benchmarks.repositories import Repositories
from benchmarks.service import Service, open_service
from mirror.cli.scheduling import take_short_slices
from mirror.demo.forge import HttpBackend

CLOSED: Final = "closed"
SETTLE_SECONDS: Final = 2.0
SERVED_SECONDS_MAX: Final = 60.0
HEADER: Final = (
    "| flood | by | polls | lost | p50, p99 ms beside a hog | p50, p99 ms | ratio of p99 |"
    " p99 ms of fresh polls, and ratio | MB before / during / after | open files |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


@contextmanager
def _forge(root: Path) -> Iterator[HttpBackend]:
    """Serve bare repositories from a thread."""
    ready = threading.Event()
    found: list[HttpBackend] = []
    stops: list[Callable[[], object]] = []

    async def serve() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        stops.append(lambda: loop.call_soon_threadsafe(stop.set))
        async with HttpBackend(root) as backend:
            found.append(backend)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    ready.wait()
    try:
        yield found[0]
    finally:
        stops[0]()
        thread.join()


class Measured:
    """What a prober met beside one flood."""

    def __init__(self, service: Service, target: Target, flood: str, seconds: float) -> None:
        """Flood for so many seconds, and poll meanwhile."""
        child = subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks.floods", "--child", flood),
                *("--target", json.dumps(asdict(target)), "--seconds", str(seconds)),
            ],
            stdout=subprocess.PIPE,
        )
        self.prober = Prober(target, tls=flood in OVER_TLS, unix=flood in OVER_UNIX)
        self.memory_mb, self.open_files = 0.0, 0
        look_at = 0.0
        while child.poll() is None:
            self.prober.poll()
            if time.monotonic() > look_at:  # a look takes milliseconds of this process only
                self.memory_mb = max(self.memory_mb, service.memory_mb())
                self.open_files = max(self.open_files, service.open_files())
                look_at = time.monotonic() + 0.5
            time.sleep(POLL_SECONDS)
        self.said = child.communicate()[0].decode().strip()


def _line(service: Service, target: Target, flood: str, seconds: float) -> str:
    """Measure one flood, with its control before it."""
    before = service.memory_mb(), service.open_files()
    control = Measured(service, target, "hog", min(seconds, 5.0)).prober
    met = Measured(service, target, flood, seconds)
    time.sleep(SETTLE_SECONDS)
    after = service.memory_mb(), service.open_files()
    known, fresh = met.prober.known, met.prober.fresh
    beside = control.known.share_ms(99)
    polls = len(known.taken) + len(fresh.taken)
    return (
        f"| {flood} | {met.said} | {polls} | {met.prober.lost} |"
        f" {control.known.share_ms(50):.2f}, {beside:.2f} |"
        f" {known.share_ms(50):.2f}, {known.share_ms(99):.2f} |"
        f" {known.share_ms(99) / beside:.1f} |"
        f" {fresh.share_ms(99):.2f}, {fresh.share_ms(99) / control.fresh.share_ms(99):.1f} |"
        f" {before[0]:.0f} / {met.memory_mb:.0f} / {after[0]:.0f} |"
        f" {before[1]} / {met.open_files} / {after[1]} |"
    )


def _wait_until_served(target: Target, *, tls: bool) -> None:
    give_up_at = time.monotonic() + SERVED_SECONDS_MAX
    while time.monotonic() < give_up_at:
        prober = Prober(target, tls=tls, unix=False)
        prober.poll()
        if not prober.lost:
            return
        time.sleep(0.1)
    raise SystemExit("the mirror does not answer;")


def _misbehave(kind: str, target: Target, seconds: float) -> None:
    """Be the child: flood, when no other process wants the processor."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.nice(19)
    with suppress(OSError, AttributeError):  # only Linux has it
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    flood = Flood(target, seconds)
    getattr(flood, kind)()
    print(f"{flood.count} connections, {sum(os.times()[:2]):.1f} s of processor")


def _certificate(directory: Path) -> dict[str, str]:
    """Make a certificate, signed with RSA: that costs most; returns `server.tls`."""
    directory.mkdir()
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"),
            *("-subj", "/CN=localhost", "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return {"certificate_file": str(certificate), "key_file": str(key)}


def main() -> None:
    """Run all floods, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("floods", nargs="*", metavar="flood", default=FLOODS)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--no-fast-lane", action="store_true")
    parser.add_argument("--child", choices=(*CONTROLS, *FLOODS))
    parser.add_argument("--target", type=lambda said: Target(**json.loads(said)))
    chosen = parser.parse_args()
    if chosen.child:
        _misbehave(chosen.child, chosen.target, chosen.seconds)
        return
    if unknown := set(chosen.floods).difference(CONTROLS, FLOODS):
        parser.error(f"no such flood: {', '.join(sorted(unknown))}; there are {', '.join(FLOODS)}")
    take_short_slices()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        root = scratch / "forge"
        root.mkdir()
        repository = Repositories(Path(".bench").resolve(), root).pack_20_mb()
        tip = git("rev-parse", "main", cwd=repository.bare)
        forge = stack.enter_context(_forge(root))
        url = forge.repository_url(repository.name)
        unix = scratch / "mirror.sock"
        overrides: dict[str, Any] = {
            "server.workers": chosen.workers,
            "server.fast_lane": not chosen.no_fast_lane,
            "server.unix_socket": str(unix),
            f"repositories.{CLOSED}.access": ["readers"],
        }
        over_tls = [flood for flood in chosen.floods if flood in OVER_TLS]
        plain = [flood for flood in chosen.floods if flood not in OVER_TLS]
        print(HEADER)
        for floods, more in (
            (plain, {}),
            (over_tls, {"server.tls": _certificate(scratch / "tls")} if over_tls else {}),
        ):
            if not floods:
                continue
            with open_service(
                scratch / f"mirror{len(more)}",
                {repository.name: url, CLOSED: url},
                overrides={**overrides, **more},
                wait_for=frozenset() if more else None,  # which is asked without TLS
            ) as service:
                target = Target(service.port, str(unix), repository.name, tip, CLOSED)
                _wait_until_served(target, tls=bool(more))
                for flood in floods:
                    print(_line(service, target, flood, chosen.seconds), flush=True)
                print(service.log.read_text()[-3000:], file=sys.stderr)


if __name__ == "__main__":
    main()
