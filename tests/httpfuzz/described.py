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
from tests.httpfuzz.asked import Asked
from tests.httpfuzz.description import for_fuzzing
from tests.httpfuzz.estate import FORGES, HIDDEN, OPEN, PRIVATE, PUSHED
from tests.httpfuzz.sending import Pollster
from tests.httpfuzz.service import Fuzzed
from tests.mirror_service import SECRET

HALF: Final = "described"
TOOL: Final = Path(".venv-fuzz/bin/schemathesis")
TALLY: Final = "tally.json"
ROOT: Final = Path(__file__).parents[2]

SHARES: Final = {"webhooks": 4, "git": 4, "lfs": 3, "bundles": 2, "monitoring": 1}
"""Of the time, by tag. In one run of all, webhooks got next to none: they are few operations whose
requests take long to make up, and others are there once for each repository."""

STARVED_SECONDS_MIN: Final = 120
"""A shorter run may not get to all, on a machine that is busy."""

POLL_SECONDS: Final = 0.05
ANSWER_SECONDS_MAX: Final = 15
"""A stale mirror holds for 5, and this machine may be busy."""

END_SECONDS_MAX: Final = 300.0
"""What a run of one kind may take beyond its time: to make what it found smaller."""

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
        seconds: How long, for all kinds of requests together.
        directory: Takes what is read once.
        kept: Takes the reports, with the requests that show what was found.
    """
    if not TOOL.exists():
        return [f"{TOOL} is not here: run it by `make fuzz-http`"]
    known = fuzzed.known
    document = for_fuzzing(
        repositories={
            name: [known.tips[name], known.parents[name]] for name in (OPEN, PRIVATE, PUSHED)
        },
        urls={forge: known.urls[name] for name, forge in FORGES.items()},
        oids=[*known.tips.values(), *known.parents.values()],
        lfs=known.lfs[0],
        bundles=[one.rpartition("/")[2] for one in fuzzed.bundles],
    )
    (directory / "openapi.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    (directory / "schemathesis.toml").write_text(_SETTINGS)
    kept.mkdir(parents=True, exist_ok=True)
    asked = Asked(document)
    found: list[str] = []
    polling = asyncio.create_task(_poll(fuzzed))
    try:
        for kind, share in SHARES.items():
            share_seconds = max(1, round(seconds * share / sum(SHARES.values())))
            report = (kept / f"schemathesis-{seed}-{kind}.json").absolute()
            command = _command(fuzzed, directory, seed, share_seconds, kind, report)
            log = await asyncio.to_thread(_run, command, fuzzed, directory, share_seconds)
            found += _judged(report, log)
            asked.take(directory / TALLY)
            print("\n".join(asked.lines(kind)), flush=True)
    finally:
        polling.cancel()
        (polled,) = await asyncio.gather(polling, return_exceptions=True)
    if isinstance(polled, WrongAnswer):
        found.append(str(polled))
    return [*found, *(asked.starved() if seconds >= STARVED_SECONDS_MIN else [])]


def _command(
    fuzzed: Fuzzed, directory: Path, seed: int, seconds: int, kind: str, report: Path
) -> list[str]:
    return [
        str(TOOL.absolute()),
        *("--config-file", str(directory / "schemathesis.toml")),
        *("run", str(directory / "openapi.yaml"), "--url", fuzzed.url, "--include-tag", kind),
        *("--seed", str(seed), "--max-time", str(seconds), "--continue-on-failure", "--no-color"),
        *("--checks", ",".join(CHECKS), "--suppress-health-check", "all", "--warnings", "off"),
        *("--max-response-time", str(ANSWER_SECONDS_MAX), "--request-timeout", "30"),
        *("--generation-database", "none", "--report", "json", "--report-json-path", str(report)),
    ]


def _judged(report: Path, log: str) -> list[str]:
    """Return what a run found; its report is kept where it found something."""
    if not report.exists():
        return [f"schemathesis gave no report:\n{log[-3000:]}"]
    said = json.loads(report.read_text())
    if not said["failures"] and not said["errors"]:
        report.unlink()
        return []
    text = report.with_suffix(".txt")
    text.write_text(log)
    return [f"{one} ({text})" for one in _told(said)]


def _run(command: list[str], fuzzed: Fuzzed, directory: Path, seconds: int) -> str:
    known = fuzzed.known
    told = {
        "secret": SECRET,
        "secrets": known.secrets,
        "hidden": HIDDEN,
        "token": known.token,
        "tally": str(directory / TALLY),
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
