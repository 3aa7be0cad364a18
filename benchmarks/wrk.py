"""wrk, the HTTP load generator: one thread, a Lua script for what is asked, figures as JSON.

The script's `done` prints the figures, because wrk's own output rounds them.
"""

import json
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.figures import Side
from benchmarks.http_client import Request, WrongAnswer

MARK: Final = "figures: "
_DONE: Final = """
function done(summary, latency, requests)
  local e = summary.errors
  io.write("\\nMARK", string.format(
    '{"requests":%d,"bytes":%d,"microseconds":%d,"p50":%d,"p99":%d,"errors":%d}\\n',
    summary.requests, summary.bytes, summary.duration,
    latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
""".replace("MARK", MARK)


@dataclass(frozen=True, slots=True)
class Load:
    """Who asks: `clients` connections, kept alive unless `is_closing`.

    Attributes:
        pause_ms: The least and most milliseconds a client waits before it asks again.
    """

    clients: int
    is_closing: bool = False
    pause_ms: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """One run."""

    requests: int
    bytes: int
    seconds: float
    p50_ms: float
    p99_ms: float
    errors: int

    @classmethod
    def parse(cls, output: str) -> "Result":
        """Read the line that our script prints.

        Raises:
            WrongAnswer: wrk did not get so far.
        """
        found = [line for line in output.splitlines() if line.startswith(MARK)]
        if not found:
            raise WrongAnswer(f"wrk says: {output.strip()[-500:]}")
        said = json.loads(found[-1].removeprefix(MARK))
        return cls(
            requests=said["requests"],
            bytes=said["bytes"],
            seconds=said["microseconds"] / 1e6,
            p50_ms=said["p50"] / 1000,
            p99_ms=said["p99"] / 1000,
            errors=said["errors"],
        )

    def side(self) -> Side:
        return Side(p50=self.p50_ms, p99=self.p99_ms, rate=self.requests / self.seconds)


def script(request: Request, load: Load) -> str:
    """Return the Lua for a request."""
    headers = dict(request.headers)
    if load.is_closing:
        headers["Connection"] = "close"
    lines = [f"wrk.method = {_quoted(request.method.encode())}"]
    lines += [
        f"wrk.headers[{_quoted(k.encode())}] = {_quoted(v.encode())}" for k, v in headers.items()
    ]
    if request.body:
        lines.append(f"wrk.body = {_quoted(request.body)}")
    if load.pause_ms:
        least, most = load.pause_ms
        lines.append(f"function delay() return math.random({least}, {most}) end")
    return "\n".join(lines) + _DONE


def _quoted(text: bytes) -> str:
    return '"' + "".join(f"\\{byte:03d}" for byte in text) + '"'


class Wrk:
    """A run of wrk that has begun; `finish` ends it early or waits for it."""

    def __init__(
        self,
        port: int,
        request: Request,
        load: Load,
        *,
        seconds: int,
        directory: Path,
        prefix: Sequence[str] = (),
    ) -> None:
        self._name = f"{request.method} {request.path}"
        place = directory / f"wrk-{port}-{abs(hash((request, load)))}.lua"
        place.write_text(script(request, load))
        self._seconds = seconds
        self._process = subprocess.Popen(
            [
                *prefix,
                *("wrk", "--threads", "1", "--connections", str(load.clients)),
                *("--duration", str(seconds), "--timeout", "30", "--script", str(place)),
                f"http://127.0.0.1:{port}{request.path}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, *, is_early: bool = False) -> Result:
        """Return the figures.

        Raises:
            WrongAnswer: There were errors, or no answer at all.
        """
        if is_early:
            self._process.send_signal(signal.SIGINT)  # wrk stops and reports
        try:
            output, _ = self._process.communicate(timeout=self._seconds + 60)
        finally:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
        result = Result.parse(output)
        if result.errors or not result.requests:
            raise WrongAnswer(f"{self._name}: {result}")
        return result
