"""From the configuration of a repository to the client of its upstream."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import aiohttp

from mirror.config import LimitSettings, RepositorySettings
from mirror.upstream.keyring import Keyring
from mirror.upstream.lfs import LfsRemote
from mirror.upstream.line import Line
from mirror.upstream.remote import Remote, RemoteLimits
from mirror.upstream.storage import Storage

KEEPALIVE_SECONDS: Final = 75.0
"""Longer than two poll intervals of 30 s: polls take the idle connections of a host in turn, and
keep the two alive that a push uses at once (`Remote.warm`)."""

CONNECTIONS_MAX: Final = 100
CONNECTIONS_PER_HOST_MAX: Final = 16


def open_session(
    *, connections_per_host_max: int = CONNECTIONS_PER_HOST_MAX, verifies: bool = True
) -> aiohttp.ClientSession:
    """Open a session for all upstreams: no cookies, no environment.

    Refreshes share one; downloads of LFS objects have another, so that no refresh waits for them.
    Without `verifies`, for this machine's own service only, certificates are not looked at.
    """
    connector = aiohttp.TCPConnector(
        limit=max(CONNECTIONS_MAX, connections_per_host_max),
        limit_per_host=connections_per_host_max,
        keepalive_timeout=KEEPALIVE_SECONDS,
        ssl=verifies,
    )
    return aiohttp.ClientSession(
        connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
    )


@asynccontextmanager
async def open_keyring(session: aiohttp.ClientSession, *, agent: bytes) -> AsyncIterator[Keyring]:
    """Provide routes and credentials; `session` reaches the forges' programming interfaces."""
    keyring = Keyring(session, agent=agent)
    try:
        yield keyring
    finally:
        await keyring.close()


def remote_for(
    session: aiohttp.ClientSession,
    keyring: Keyring,
    settings: RepositorySettings,
    limits: LimitSettings,
    *,
    agent: bytes,
) -> Remote:
    """Make the client for one repository's upstream."""
    return Remote(
        Line(session, keyring.route(settings)),
        settings.upstream,
        credentials=keyring.credentials(settings),
        limits=RemoteLimits(
            silence_seconds_max=limits.upstream_timeout_seconds,
            pack_bytes_max=limits.pack_bytes_max,
        ),
        agent=agent,
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
