"""Has schemathesis ask what docs/openapi.yaml describes, and hold the answers against it."""

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from tests.httpfuzz.answers import WrongAnswer
from tests.httpfuzz.description import for_fuzzing
from tests.httpfuzz.estate import HIDDEN, OPEN, PRIVATE, PUSHED
from tests.httpfuzz.sending import Pollster
from tests.httpfuzz.service import Fuzzed
from tests.mirror_service import SECRET

HALF: Final = "described"
TOOL: Final = Path(".venv-fuzz/bin/schemathesis")
ROOT: Final = Path(__file__).parents[2]

POLL_SECONDS: Final = 0.05
ANSWER_SECONDS_MAX: Final = 15
"""A stale mirror holds for 5, and this machine may be busy."""

END_SECONDS_MAX: Final = 300.0
"""What a run may take beyond its time: to make what it found smaller."""

CHECKS: Final = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance"),
    *("response_headers_conformance", "response_schema_conformance"),
    *("unsupported_method", "allow_header_conformance"),
    *("gives_nothing_away", "may_be_played_again"),
)
"""Not whether what is valid is taken and what is not refused: that a schema can't tell here."""

_SETTINGS: Final = """\
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "503"]
"""


async def ask_as_described(
    fuzzed: Fuzzed, seed: int, seconds: int, directory: Path, kept: Path
) -> list[str]:
    """Let schemathesis ask for so long, with good polls beside it; returns what was found.

    Args:
        fuzzed: The service.
        seed: Of what is made up.
        seconds: How long.
        directory: Takes what is read once.
        kept: Takes the report, with the requests that show what was found.
    """
    if not TOOL.exists():
        return [f"{TOOL} is not here: run it by `make fuzz-http`"]
    known = fuzzed.known
    document = for_fuzzing(
        repositories=[OPEN, PRIVATE, PUSHED],
        urls=list(known.urls.values()),
        oids=[*known.tips.values(), *known.parents.values()],
        lfs=known.lfs[0],
        bundles=[one.rpartition("/")[2] for one in fuzzed.bundles],
    )
    (directory / "openapi.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    (directory / "schemathesis.toml").write_text(_SETTINGS)
    report = (kept / f"schemathesis-{seed}.json").absolute()
    report.parent.mkdir(parents=True, exist_ok=True)
    command = [
        str(TOOL.absolute()),
        *("--config-file", str(directory / "schemathesis.toml")),
        *("run", str(directory / "openapi.yaml"), "--url", fuzzed.url),
        *("--seed", str(seed), "--max-time", str(seconds), "--continue-on-failure", "--no-color"),
        *("--checks", ",".join(CHECKS), "--suppress-health-check", "all", "--warnings", "off"),
        *("--max-response-time", str(ANSWER_SECONDS_MAX), "--request-timeout", "30"),
        *("--generation-database", "none", "--report", "json", "--report-json-path", str(report)),
    ]
    polling = asyncio.create_task(_poll(fuzzed))
    try:
        log = await asyncio.to_thread(_run, command, fuzzed, directory, seconds)
    finally:
        polling.cancel()
        (polled,) = await asyncio.gather(polling, return_exceptions=True)
    found = [str(polled)] if isinstance(polled, WrongAnswer) else []
    if not report.exists():
        return [*found, f"schemathesis gave no report:\n{log[-3000:]}"]
    said = json.loads(report.read_text())
    print(
        f"{said['test_cases']['generated']} cases of {said['operations']['tested']} operations,"
        f" {said['test_cases']['with_failures']} of them wrong; {said['running_time']:.0f} s"
    )
    if said["failures"] or said["errors"]:
        text = report.with_suffix(".txt")
        text.write_text(log)
        found += [f"{one} ({text})" for one in _told(said)]
    else:
        report.unlink()
    return found


def _run(command: list[str], fuzzed: Fuzzed, directory: Path, seconds: int) -> str:
    known = fuzzed.known
    told = {
        "secret": SECRET,
        "secrets": known.secrets,
        "hidden": HIDDEN,
        "token": known.token,
    }
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "SCHEMATHESIS_HOOKS": "tests.httpfuzz.hooks",
        "FUZZED": json.dumps(told),
    }
    completed = subprocess.run(
        command,
        env=environment,
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        timeout=seconds + END_SECONDS_MAX,
    )
    return completed.stdout.decode()


async def _poll(fuzzed: Fuzzed) -> None:
    """Ask good polls, for ever.

    Raises:
        WrongAnswer: One is answered wrongly.
    """
    pollster = Pollster(fuzzed.host, fuzzed.port, fuzzed.polls)
    try:
        while True:
            await pollster.ask()
            await asyncio.sleep(POLL_SECONDS)
    finally:
        pollster.close()


def _told(report: Mapping[str, Any]) -> Iterator[str]:
    """Tell what is in a report, one line for each."""
    for one in (*report["failures"], *report["errors"]):
        yield json.dumps(one)[:1000]
