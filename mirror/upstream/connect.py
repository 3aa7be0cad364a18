"""From the configuration of a repository to the client of its upstream."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import aiohttp
from aiohttp.abc import AbstractResolver

from mirror.config import LimitSettings, RepositorySettings, Settings
from mirror.upstream.addresses import GuardedResolver
from mirror.upstream.keyring import Keyring
from mirror.upstream.lfs import LfsRemote
from mirror.upstream.line import Line, headers_trace
from mirror.upstream.remote import Remote, RemoteLimits
from mirror.upstream.storage import Storage

KEEPALIVE_SECONDS: Final = 75.0
"""Longer than two poll intervals of 30 s: polls take the idle connections of a host in turn, and
keep the two alive that a push uses at once (`Remote.warm`)."""

CONNECTIONS_MAX: Final = 100
CONNECTIONS_PER_HOST_MAX: Final = 16


def open_session(
    *,
    connections_per_host_max: int = CONNECTIONS_PER_HOST_MAX,
    resolver: AbstractResolver | None = None,
    verifies: bool = True,
) -> aiohttp.ClientSession:
    """Open a session for all upstreams: no cookies, no environment.

    Refreshes share one; downloads of LFS objects have another, so that no refresh waits for them.

    Args:
        connections_per_host_max: At once.
        resolver: Looks up the names of hosts; by default the system does.
        verifies: Otherwise, for this machine's own service only, certificates are not looked at.
    """
    connector = aiohttp.TCPConnector(
        resolver=resolver,
        limit=max(CONNECTIONS_MAX, connections_per_host_max),
        limit_per_host=connections_per_host_max,
        keepalive_timeout=KEEPALIVE_SECONDS,
        ssl=verifies,
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        trace_configs=[headers_trace()],
    )


@asynccontextmanager
async def open_keyring(session: aiohttp.ClientSession, *, agent: bytes) -> AsyncIterator[Keyring]:
    """Provide routes and credentials; `session` reaches the forges' programming interfaces."""
    keyring = Keyring(session, agent=agent)
    try:
        yield keyring
    finally:
        await keyring.close()


@dataclass(frozen=True, slots=True)
class Sessions:
    """Ways to the upstreams.

    Attributes:
        configured: To those that the configuration names one by one.
        below_places: To those below `upstreams`, which go to no address that they must not go to.
        guard: Sees to that.
    """

    configured: aiohttp.ClientSession
    below_places: aiohttp.ClientSession
    guard: GuardedResolver

    def of(self, settings: RepositorySettings) -> aiohttp.ClientSession:
        """Return the way to one repository's upstream."""
        return self.configured if settings.place is None else self.below_places


@asynccontextmanager
async def open_sessions(
    settings: Settings, *, connections_per_host_max: int = CONNECTIONS_PER_HOST_MAX
) -> AsyncIterator[Sessions]:
    """Open the ways to all upstreams; see `open_session`."""
    open_one = partial(open_session, connections_per_host_max=connections_per_host_max)
    guarded = guarded_resolver(settings)
    async with open_one() as configured, open_one(resolver=guarded) as below_places:
        yield Sessions(configured, below_places, guarded)


def guarded_resolver(settings: Settings) -> GuardedResolver:
    """Make what looks up the hosts of `upstreams`."""
    resolver = GuardedResolver((), aiohttp.ThreadedResolver())
    admit_places(resolver, settings)
    return resolver


def admit_places(resolver: GuardedResolver, settings: Settings) -> None:
    """Look up the hosts of `settings` from now on, and no others."""
    places = [one.place for one in settings.upstreams if one.place is not None]
    proxies = [one.route.proxy for one in settings.upstreams if one.route.proxy is not None]
    resolver.admit(places, proxies=proxies)


def remote_for(
    session: aiohttp.ClientSession,
    keyring: Keyring,
    settings: RepositorySettings,
    limits: LimitSettings,
    *,
    agent: bytes,
) -> Remote:
    """Make the client for one repository's upstream."""
    place = settings.place
    pack_bytes_max = limits.pack_bytes_max
    if place is not None:
        pack_bytes_max = min(pack_bytes_max, limits.pull_through_bytes_max)
    return Remote(
        Line(session, keyring.route(settings)),
        settings.upstream,
        credentials=keyring.credentials(settings),
        limits=RemoteLimits(
            silence_seconds_max=limits.upstream_timeout_seconds,
            pack_bytes_max=pack_bytes_max,
            bytes_per_second_min=limits.upstream_bytes_per_second_min,
        ),
        agent=agent,
        may_move_to=place.admits_upstream if place is not None else None,
    )


def lfs_remote_for(
    session: aiohttp.ClientSession,
    keyring: Keyring,
    storage: Storage,
    settings: RepositorySettings,
    limits: LimitSettings,
    *,
    agent: bytes,
) -> LfsRemote:
    """Make the client for the LFS objects of one repository's upstream."""
    return LfsRemote(
        Line(session, keyring.route(settings)),
        storage,
        settings.upstream,
        credentials=keyring.credentials(settings),
        silence_seconds_max=limits.upstream_timeout_seconds,
        agent=agent,
    )
