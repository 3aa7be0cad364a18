"""The way to a host: its name, its port, its certificate, its clock; each with its time."""

import asyncio
import socket
import ssl
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import urlsplit

from mirror.doctor.finding import Finding, Verdict, judged, milliseconds

CONNECT_SECONDS_MAX: Final = 10.0
CERTIFICATE_DAYS_WARNING: Final = 21
CERTIFICATE_DAYS_PROBLEM: Final = 3

SKEW_SECONDS_WARNING: Final = 5.0
SKEW_SECONDS_PROBLEM: Final = 60.0
"""GitHub refuses a token of an app that is a minute in the future; webhooks may be dated, too."""

_DAY_SECONDS: Final = 86400


@dataclass(frozen=True, slots=True)
class Place:
    """Where a URL leads."""

    host: str
    port: int
    is_tls: bool

    @classmethod
    def of(cls, url: str) -> "Place":
        """Return the place of an http or https URL."""
        parts = urlsplit(url)
        is_tls = parts.scheme == "https"
        return cls(parts.hostname or "", parts.port or (443 if is_tls else 80), is_tls)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


async def examine_line(place: Place, *, tls: ssl.SSLContext) -> list[Finding]:
    """Look up a host, connect to it, and shake hands; stops at what fails."""
    subject, findings = str(place), []
    began_at = time.perf_counter()
    try:
        async with asyncio.timeout(CONNECT_SECONDS_MAX):
            addresses = await asyncio.get_running_loop().getaddrinfo(
                place.host, place.port, type=socket.SOCK_STREAM
            )
    except (OSError, TimeoutError, UnicodeError) as error:
        why = "no answer" if isinstance(error, TimeoutError) else str(error)
        return [_failed(subject, "DNS", why, "look at /etc/resolv.conf and the host's name")]
    took = _ms(began_at)
    found = list(dict.fromkeys(str(one[4][0]) for one in addresses))
    findings.append(
        Finding(
            subject,
            "DNS",
            judged(took, warning=200, problem=2000),
            f"{milliseconds(took)}: {', '.join(found[:4])}",
            "" if took < 200 else "a resolver on this machine with a cache would help",
            {"ms": round(took, 3), "addresses": len(found)},
        )
    )
    began_at = time.perf_counter()
    try:
        async with asyncio.timeout(CONNECT_SECONDS_MAX):
            _, writer = await asyncio.open_connection(place.host, place.port)
    except (OSError, TimeoutError) as error:
        why = "no answer" if isinstance(error, TimeoutError) else str(error)
        findings.append(_failed(subject, "TCP", why, "is the port right, and the firewall open?"))
        return findings
    took = _ms(began_at)
    findings.append(
        Finding(subject, "TCP", Verdict.OK, milliseconds(took), "", {"ms": round(took, 3)})
    )
    try:
        if place.is_tls:
            findings.append(await _handshake(subject, place, writer, tls))
    finally:
        writer.close()
    return findings


async def _handshake(
    subject: str, place: Place, writer: asyncio.StreamWriter, tls: ssl.SSLContext
) -> Finding:
    began_at = time.perf_counter()
    try:
        async with asyncio.timeout(CONNECT_SECONDS_MAX):
            await writer.start_tls(tls, server_hostname=place.host)
    except ssl.SSLCertVerificationError as error:
        return _failed(
            subject,
            "TLS",
            error.verify_message,
            "the upstream's certificate has to be renewed, or"
            " its authority installed on this machine",
        )
    except (OSError, TimeoutError) as error:
        why = "no answer" if isinstance(error, TimeoutError) else str(error)
        return _failed(subject, "TLS", why, "does the port speak TLS?")
    took = _ms(began_at)
    certificate = writer.get_extra_info("peercert") or {}
    days = None
    if until := certificate.get("notAfter"):
        days = (ssl.cert_time_to_seconds(until) - time.time()) / _DAY_SECONDS
    verdict, remark = Verdict.OK, ""
    if days is not None and days < CERTIFICATE_DAYS_WARNING:
        verdict = Verdict.PROBLEM if days < CERTIFICATE_DAYS_PROBLEM else Verdict.WARNING
        remark = "its certificate ends soon: tell who runs it"
    lasts = "" if days is None else f", certificate valid for {days:.0f} days"
    return Finding(
        subject,
        "TLS",
        verdict,
        f"{milliseconds(took)}, {writer.get_extra_info('ssl_object').version()}{lasts}",
        remark,
        {"ms": round(took, 3), "certificate_days": None if days is None else round(days, 1)},
    )


def judge_clock(subject: str, date: str | None, *, asked_at: float, answered_at: float) -> Finding:
    """Compare our clock with a server's Date, which has whole seconds.

    Args:
        subject: Whose.
        date: The header.
        asked_at: Our time, in seconds since the epoch, when the request was sent.
        answered_at: And when the answer came.
    """
    try:
        theirs = parsedate_to_datetime(date or "").timestamp()
    except (ValueError, TypeError):
        return Finding(subject, "clock", Verdict.NOTE, "it sends no Date")
    # It was between theirs and theirs + 1 there, at some time between asked_at and answered_at.
    skew = max(asked_at - (theirs + 1), theirs - answered_at, 0.0)
    verdict = judged(skew, warning=SKEW_SECONDS_WARNING, problem=SKEW_SECONDS_PROBLEM)
    return Finding(
        subject,
        "clock",
        verdict,
        "agrees within a second" if skew < 1 else f"differs by {skew:.0f} s",
        "" if verdict is Verdict.OK else "let chrony or systemd-timesyncd set this machine's clock",
        {"skew_seconds": round(skew, 3)},
    )


def _failed(subject: str, check: str, why: str, advice: str) -> Finding:
    return Finding(subject, check, Verdict.PROBLEM, why, advice)


def _ms(began_at: float) -> float:
    return (time.perf_counter() - began_at) * 1000
