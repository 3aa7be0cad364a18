"""From the configuration of a repository to the client of its upstream."""

from typing import Final

import aiohttp

from mirror.config import LimitSettings, RepositorySettings
from mirror.upstream.credentials import BasicCredentials
from mirror.upstream.remote import Remote, RemoteLimits

KEEPALIVE_SECONDS: Final = 75.0
"""Longer than two poll intervals of 30 s: polls take the idle connections of a host in turn, and
keep the two alive that a push uses at once (`Remote.warm`)."""

CONNECTIONS_MAX: Final = 100
CONNECTIONS_PER_HOST_MAX: Final = 16


def open_session() -> aiohttp.ClientSession:
    """Open the one session that all upstreams share: no cookies, no environment."""
    connector = aiohttp.TCPConnector(
        limit=CONNECTIONS_MAX,
        limit_per_host=CONNECTIONS_PER_HOST_MAX,
        keepalive_timeout=KEEPALIVE_SECONDS,
    )
    return aiohttp.ClientSession(
        connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
    )


def remote_for(
    session: aiohttp.ClientSession,
    settings: RepositorySettings,
    limits: LimitSettings,
    *,
    agent: bytes,
) -> Remote:
    """Make the client for one repository's upstream."""
    credentials = settings.credentials
    return Remote(
        session,
        settings.upstream,
        credentials=BasicCredentials(credentials.username, credentials.password_file)
        if credentials is not None
        else None,
        limits=RemoteLimits(
            silence_seconds_max=limits.upstream_timeout_seconds,
            pack_bytes_max=limits.pack_bytes_max,
        ),
        agent=agent,
    )
