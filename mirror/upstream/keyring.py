"""What a process has for reaching its upstreams: routes and credentials, shared where they can be.

Repositories that are reached alike share a route, and with it trust and connections; those of one
organisation share the token of a GitHub App; those with the same token share what is known of its
end. Each repository has credentials of its own all the same, and so a `Standing`.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit
from weakref import WeakValueDictionary

import aiohttp
import structlog

from mirror.config import (
    GithubAppSettings,
    NetrcSettings,
    PasswordSettings,
    RepositorySettings,
    RouteSettings,
)
from mirror.upstream.credentials import BasicCredentials, Credentials, NetrcCredentials
from mirror.upstream.expiry import Expiries
from mirror.upstream.forges.hook_api import api_base
from mirror.upstream.line import Line
from mirror.upstream.route import Route

if TYPE_CHECKING:
    from mirror.upstream.github_app import GithubApp

logger = structlog.stdlib.get_logger()

LOOK_SECONDS: Final = 60.0
"""How often tokens are looked at: do they end soon, have they changed?"""


class Keyring:
    """Routes and credentials of one process."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        *,
        agent: bytes,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with none.

        Args:
            session: Reaches the programming interfaces of the forges.
            agent: What they know us by.
            clock: The time of day.
            monotonic: For the age of tokens.
        """
        self._session = session
        self._agent = agent
        self._clock = clock
        self._monotonic = monotonic
        self._routes: dict[RouteSettings, Route] = {}
        self._apps: dict[tuple[GithubAppSettings, str, RouteSettings], GithubApp] = {}
        # As long as somebody uses them: repositories may go.
        self._credentials: WeakValueDictionary[RepositorySettings, Credentials] = (
            WeakValueDictionary()
        )
        self._expiries = Expiries(agent=agent, clock=clock)

    def route(self, settings: RepositorySettings) -> Route:
        """Return how a repository's upstream is reached, the same for all with equal settings."""
        route = self._routes.get(settings.route)
        if route is None:
            route = self._routes[settings.route] = Route(settings.route)
        return route

    def keep_routes(self, wanted: Iterable[RouteSettings]) -> None:
        """Let go of the routes that the configuration does not name any more."""
        kept = {RouteSettings(), *wanted}
        self._routes = {one: route for one, route in self._routes.items() if one in kept}

    def credentials(self, settings: RepositorySettings) -> Credentials | None:
        """Return what a repository signs in with, the same each time; `None` for nothing."""
        known = self._credentials.get(settings)
        if known is not None:
            return known
        made = self._made(settings)
        if made is not None:
            self._credentials[settings] = made
        return made

    async def look(self) -> None:
        """Renew tokens whose time has come, and ask when others end."""
        for app in self._apps.values():
            app.renew_ahead()
        for settings, one in list(self._credentials.items()):
            if isinstance(one, BasicCredentials | NetrcCredentials):
                line = Line(self._session, self.route(settings))
                await self._expiries.look(
                    line, one, forge=settings.forge, upstream=settings.upstream
                )

    async def watch(self) -> None:
        """Look for ever."""
        while True:
            try:
                await self.look()
            except Exception:
                logger.exception("look_at_credentials_broke")
            await asyncio.sleep(LOOK_SECONDS)

    async def close(self) -> None:
        """End what is under way."""
        for app in self._apps.values():
            await app.close()

    def _made(self, settings: RepositorySettings) -> Credentials | None:
        match settings.credentials:
            case None:
                return None
            case PasswordSettings(username=username, password_file=file):
                return BasicCredentials(username, file)
            case NetrcSettings(username=username, netrc_file=file):
                parts = urlsplit(settings.upstream)
                port = parts.port or (443 if parts.scheme == "https" else 80)
                return NetrcCredentials(file, parts.hostname or "", port, username=username)
            case GithubAppSettings() as app:
                return self._of_app(settings, app)

    def _of_app(self, settings: RepositorySettings, app: GithubAppSettings) -> Credentials:
        # Only here: who has no app pays nothing for cryptography.
        from mirror.upstream.github_app import (  # noqa: PLC0415
            GithubApp,
            GithubAppCredentials,
        )

        api = app.api or api_base("github", settings.upstream)
        own = replace(app, installation_id=None)
        key = own, api, settings.route
        if key not in self._apps:
            self._apps[key] = GithubApp(
                Line(self._session, self.route(settings)),
                app_id=app.app_id,
                private_key_file=app.private_key_file,
                api=api,
                agent=self._agent,
                clock=self._clock,
                monotonic=self._monotonic,
            )
        made = self._apps[key]
        owner = unquote(urlsplit(settings.upstream).path.strip("/").split("/")[0])
        return GithubAppCredentials(made, made.installation(owner, app.installation_id))
