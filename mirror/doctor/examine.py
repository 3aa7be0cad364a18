"""The whole examination: every host and repository of a configuration, within bounds."""

import asyncio
import ssl
import time
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import aiohttp
from yarl import URL

from mirror.config import AccessKind, RepositorySettings, Settings
from mirror.doctor.data import examine_data
from mirror.doctor.finding import Finding, Verdict
from mirror.doctor.git import examine_mirror, examine_upstream
from mirror.doctor.host import examine_host
from mirror.doctor.line import Place, examine_line, judge_clock
from mirror.doctor.service import (
    STATE_ERRORS,
    examine_credentials,
    examine_reach,
    examine_relay,
    examine_state,
    examine_webhook,
    get_state,
    service_pid,
    without_service,
)
from mirror.errors import UpstreamError
from mirror.places import DataDirectory
from mirror.refresh.relay.relays import probe_receivers
from mirror.serving import AGENT
from mirror.stores import reserve_of
from mirror.upstream.connect import open_keyring, open_session, remote_for
from mirror.upstream.credentials import BasicCredentials
from mirror.upstream.keyring import Keyring
from mirror.upstream.line import Line
from mirror.upstream.remote import Remote, RemoteLimits
from mirror.upstream.route import Route

AT_ONCE_MAX: Final = 4
"""Hosts and upstreams looked at together. The mirror's times are taken one after the other."""

REPOSITORIES_MAX: Final = 10
"""Looked at unless they are named: forges count requests."""

ANSWER_SECONDS_MAX: Final = 15.0


async def examine(
    settings: Settings, names: Iterable[str], *, url: str, token_file: Path | None = None
) -> list[Finding]:
    """Look at everything.

    Args:
        settings: The configuration.
        names: The repositories; none means the first `REPOSITORIES_MAX`.
        url: Of the running service.
        token_file: Holds a token to read with, where not everybody may.
    """
    chosen = list(names) or list(settings.repositories)[:REPOSITORIES_MAX]
    repositories = [settings.repositories[name] for name in chosen]
    pid = service_pid(DataDirectory(settings.data_dir).control)
    count = len(settings.repositories)
    if settings.upstreams:
        count += settings.limits.pull_through_repositories_max
    findings = await asyncio.to_thread(
        lambda: list(
            examine_host(
                settings.data_dir, reserve=reserve_of(settings), repositories=count, pid=pid
            )
        )
    )
    findings += await asyncio.to_thread(
        lambda: list(examine_data(settings.data_dir, lambda name: settings.find(name) is not None))
    )
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(open_session())
        keyring = await stack.enter_async_context(open_keyring(session, agent=AGENT))
        findings += await _upstreams(session, keyring, settings, repositories)
        findings += await _receivers(settings)
        status = await _status(settings, url)
        if isinstance(status, Finding):
            findings.append(status)
        else:
            # To this very service: whose name its certificate has is not the question here.
            own = await stack.enter_async_context(open_session(verifies=False))
            known = status["relays"]
            findings += [
                examine_relay(name, known[name]) for name in settings.relays if name in known
            ]
            findings += await _mirror(own, repositories, status["repositories"], url, token_file)
    left = len(settings.repositories) - len(repositories)
    if left > 0 and not names:
        words = f"{left} were not looked at"
        findings.append(Finding("repositories", "others", Verdict.NOTE, words, "name them"))
    return findings


async def _upstreams(
    session: aiohttp.ClientSession,
    keyring: Keyring,
    settings: Settings,
    repositories: list[RepositorySettings],
) -> list[Finding]:
    ways = dict.fromkeys((Place.of(one.upstream), keyring.route(one)) for one in repositories)
    at_once = asyncio.Semaphore(AT_ONCE_MAX)
    system = ssl.create_default_context()

    async def look_at_host(way: tuple[Place, Route]) -> list[Finding]:
        place, route = way
        async with at_once:
            try:
                tls = await route.tls() or system
                # Of a proxy, for that looks up the upstream's name and connects to it.
                first = place if route.proxy is None else Place.of(route.proxy)
                found = await examine_line(first, tls=tls)
                if all(one.verdict is not Verdict.PROBLEM for one in found):
                    found.append(await _clock(Line(session, route), place))
            except UpstreamError as error:
                return [Finding(str(place), "route", Verdict.PROBLEM, str(error))]
            return found

    async def look_at_repository(repository: RepositorySettings) -> list[Finding]:
        async with at_once:
            remote = remote_for(session, keyring, repository, settings.limits, agent=AGENT)
            return await examine_upstream(repository.name, remote)

    hosts = await asyncio.gather(*map(look_at_host, ways))
    upstreams = await asyncio.gather(*map(look_at_repository, repositories))
    return [one for found in (*hosts, *upstreams) for one in found]


async def _clock(line: Line, place: Place) -> Finding:
    """Ask for anything at all: the answer has a date."""
    url = URL(f"{'https' if place.is_tls else 'http'}://{place}/")
    asked_at = time.time()
    try:
        async with line.requested(
            "HEAD", url, headers={}, silence_seconds_max=ANSWER_SECONDS_MAX
        ) as answer:
            date = answer.headers.get("Date")
    except UpstreamError as error:
        return Finding(str(place), "clock", Verdict.NOTE, f"no answer: {error}")
    return judge_clock(str(place), date, asked_at=asked_at, answered_at=time.time())


async def _receivers(settings: Settings) -> list[Finding]:
    """Connect to the receivers of events; nothing is sent."""
    problems = await probe_receivers(settings.relays.values())
    return [examine_reach(name, problem) for name, problem in problems.items()]


async def _mirror(
    session: aiohttp.ClientSession,
    repositories: list[RepositorySettings],
    states: Mapping[str, Mapping[str, Any]],
    url: str,
    token_file: Path | None,
) -> list[Finding]:
    findings = []
    limits = RemoteLimits(silence_seconds_max=ANSWER_SECONDS_MAX, pack_bytes_max=1 << 30)
    credentials = BasicCredentials("doctor", token_file) if token_file else None
    for one in repositories:
        state = states.get(one.name)
        if state is None:
            advice = "the service runs with another configuration: restart it"
            findings.append(Finding(one.name, "freshness", Verdict.PROBLEM, "not served", advice))
            continue
        findings += [
            examine_state(one.name, state),
            *examine_credentials(one.name, state),
            examine_webhook(one, state, now=time.time()),
        ]
        if state["snapshot"] is None:
            continue
        if AccessKind.ANONYMOUS not in one.access and credentials is None:
            advice = "give a token that may read it, with --token-file"
            findings.append(Finding(one.name, "the mirror", Verdict.NOTE, "not open", advice))
            continue
        remote = Remote(
            Line(session), f"{url}/{one.name}", credentials=credentials, limits=limits, agent=AGENT
        )
        findings += await examine_mirror(one.name, remote)
    return findings


async def _status(settings: Settings, url: str) -> Mapping[str, Any] | Finding:
    """Ask the service how it is: over its control socket, or else as anybody."""
    control = DataDirectory(settings.data_dir).control
    try:
        try:
            return await get_state("http://control", aiohttp.UnixConnector(str(control)))
        except STATE_ERRORS:
            return await get_state(url)
    except STATE_ERRORS as error:
        return without_service(url, str(error) or type(error).__name__)
