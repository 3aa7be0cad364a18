"""What the running service says of itself, and what to think of it."""

import socket
import struct
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import aiohttp

from mirror.config import RepositorySettings
from mirror.doctor.finding import Finding, Verdict, judged

MISSED_SECONDS: Final = 120.0
"""A webhook comes within seconds of its push; one that is so late did not bring the change."""

STATE_ERRORS: Final = (aiohttp.ClientError, TimeoutError, ValueError, OSError)

EXPIRY_DAYS_WARNING: Final = 14.0
EXPIRY_DAYS_PROBLEM: Final = 3.0

_STATE_TIMEOUT: Final = aiohttp.ClientTimeout(total=10)

_CREDENTIALS: Final = struct.Struct("3i")


async def get_state(url: str, connector: aiohttp.BaseConnector | None = None) -> dict[str, Any]:
    """Return the running service's account of itself.

    Raises:
        One of `STATE_ERRORS`: It is not to be had.
    """
    async with (
        aiohttp.ClientSession(connector=connector, timeout=_STATE_TIMEOUT) as session,
        session.get(f"{url}/status.json") as answer,
    ):
        answer.raise_for_status()
        found: dict[str, Any] = await answer.json()
        return found


def service_pid(control: Path) -> int | None:
    """Return the process id of the service that holds the control socket; `None` without one."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        try:
            peer.connect(str(control))
            raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        except OSError:
            return None
    pid: int = _CREDENTIALS.unpack(raw)[0]
    return pid


def examine_state(name: str, state: Mapping[str, Any]) -> Finding:
    """Judge a repository's part of /status.json."""
    word = str(state["state"])
    age = state["age_seconds"]
    figure = word + ("" if age is None else f", confirmed {age:.0f} s ago")
    error = state["last_error"] or ""
    if word == "fresh":
        return Finding(name, "freshness", Verdict.OK, figure, "", {"age_seconds": age})
    verdict = Verdict.WARNING if word in ("stale", "cloning") else Verdict.PROBLEM
    return Finding(name, "freshness", verdict, figure, error, {"age_seconds": age})


def examine_credentials(name: str, state: Mapping[str, Any]) -> list[Finding]:
    """Judge what a repository signs in to its upstream with, where it does."""
    found = state["credentials"]
    if found is None:
        return []
    check, words, days = "credentials", str(found["name"]), found["days_left"]
    verdict, remark, advice = Verdict.OK, "taken", ""
    if found["failing_since"] is not None:
        verdict, remark = Verdict.PROBLEM, f"failing since {found['failing_since']}"
        advice = state["last_error"] or "look at the log"
    elif days is not None:
        verdict = judged(-days, warning=-EXPIRY_DAYS_WARNING, problem=-EXPIRY_DAYS_PROBLEM)
        remark = f"valid for {days:.0f} days" if days > 0 else "they have ended"
        advice = "" if verdict is Verdict.OK else "make new ones at the forge, and put them there"
    elif found["accepted_at"] is None:
        verdict, remark = Verdict.NOTE, "not used yet"
    elif found["renewed_at"] is not None:
        remark = f"its token was renewed at {found['renewed_at']}"
    data = {"kind": found["kind"], "days_left": days}
    return [Finding(name, check, verdict, f"{words}: {remark}", advice, data)]


def examine_webhook(
    settings: RepositorySettings, state: Mapping[str, Any], *, now: float
) -> Finding:
    """Tell whether webhooks come, and whether they are what brings the changes."""
    name, check = settings.name, "webhook"
    polls = settings.poll_interval_seconds
    if settings.webhook_secret_file is None:
        if polls is None and settings.max_age_seconds is None:
            return Finding(
                name,
                check,
                Verdict.PROBLEM,
                "none, and no polls either",
                "nothing tells the mirror of a push: set webhook_secret_file or poll_interval",
            )
        return Finding(name, check, Verdict.NOTE, "none is set up: pushes are found by polls")
    seen, changed = _seconds(state["last_webhook_at"]), _seconds(state["last_change_at"])
    if seen is None:
        return Finding(
            name,
            check,
            Verdict.WARNING,
            "none since the service started",
            "push something, and look at the forge's list of deliveries",
        )
    figure, data = f"{_ago(now - seen)} ago", {"seconds_ago": round(now - seen, 1)}
    if changed is not None and changed - seen > MISSED_SECONDS:
        advice = "the last change was found by a poll: look at the forge's list of deliveries"
        return Finding(name, check, Verdict.WARNING, figure, advice, dict(data))
    return Finding(name, check, Verdict.OK, figure, "", dict(data))


def examine_reach(name: str, problem: str | None) -> Finding:
    """Judge whether a receiver of events accepts connections."""
    subject, check = f"relay {name}", "receiver accepts connections"
    if problem is None:
        return Finding(subject, check, Verdict.OK, "yes")
    return Finding(subject, check, Verdict.PROBLEM, problem, "look at `url` and at the receiver")


def examine_relay(name: str, state: Mapping[str, Any]) -> Finding:
    """Judge a receiver's part of /status.json."""
    subject, check = f"relay {name}", "events are taken"
    pending, oldest = int(state["pending"]), float(state["oldest_pending_seconds"])
    data: dict[str, float | int | str | None] = {"pending": pending, "oldest_seconds": oldest}
    figure = f"{pending} wait, the oldest for {oldest:.0f} s" if pending else "none waits"
    if state["last_error"] is not None:
        return Finding(subject, check, Verdict.PROBLEM, figure, state["last_error"], data)
    return Finding(subject, check, Verdict.OK, figure, "", data)


def without_service(url: str, why: str) -> Finding:
    """Say that nobody answers."""
    advice = "start it: `systemctl start git-mirror`, or `git-mirror serve`"
    return Finding("the mirror", f"answers at {url}", Verdict.PROBLEM, why, advice)


def _seconds(at: str | None) -> float | None:
    if at is None:
        return None
    return datetime.fromisoformat(at).astimezone(UTC).timestamp()


def _ago(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} seconds"
