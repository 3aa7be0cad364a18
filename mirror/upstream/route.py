"""How an upstream is reached: whose certificates are trusted, and through which proxy.

One `Route` serves all repositories that are reached alike. What the environment says of proxies is
not heeded: the configuration alone decides where credentials travel.
"""

import asyncio
import ssl
from pathlib import Path
from typing import Final, TypedDict

from yarl import URL

from mirror.config import RouteSettings
from mirror.errors import UpstreamRefused
from mirror.upstream.credentials import SecretFile, Stamp, basic, stamp_of


class RequestOptions(TypedDict):
    """What aiohttp's client takes with a request."""

    ssl: ssl.SSLContext | bool
    proxy: str | None
    proxy_headers: dict[str, str] | None


class Route:
    """A way to an upstream."""

    def __init__(self, settings: RouteSettings) -> None:
        self.proxy = settings.proxy
        self._trust = None if settings.ca_file is None else _Trust(settings.ca_file)
        self._account: tuple[str, SecretFile] | None = None
        if settings.proxy_credentials is not None:
            account = settings.proxy_credentials
            self._account = account.username, SecretFile(account.password_file)

    async def options(self) -> RequestOptions:
        """Return what to give aiohttp's client with each request.

        Raises:
            UpstreamRefused: A file that it needs can't be used.
        """
        context = await self.tls()
        return {
            "ssl": True if context is None else context,
            "proxy": self.proxy,
            "proxy_headers": self.proxy_headers() or None,
        }

    async def tls(self) -> ssl.SSLContext | None:
        """Return who is trusted; `None` for the system's authorities alone.

        Raises:
            UpstreamRefused: The `ca_file` can't be used.
        """
        return None if self._trust is None else await self._trust.context()

    def proxy_headers(self) -> dict[str, str]:
        """Return what signs in to the proxy.

        Raises:
            UpstreamRefused: The password file can't be used.
        """
        if self._account is None:
            return {}
        username, file = self._account
        try:
            return {"Proxy-Authorization": basic(username, file.read())}
        except OSError as error:
            raise UpstreamRefused(
                f"the password file of `proxy_credentials`, {file.path}, can't be read:"
                f" {error.strerror}; put the password there, readable for git-mirror's user"
            ) from error
        except ValueError as error:
            raise UpstreamRefused(
                f"the password file of `proxy_credentials` can't be used: {error}"
            ) from error

    def headers_for(self, url: URL) -> dict[str, str]:
        """Return what a request to `url` itself carries for the proxy: it sees plain http whole."""
        return self.proxy_headers() if self.proxy is not None and url.scheme == "http" else {}


class _Trust:
    """The system's authorities and those in a file, read anew when the file changes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reading = asyncio.Lock()
        self._stamp: Stamp | None = None
        self._context: ssl.SSLContext | None = None

    async def context(self) -> ssl.SSLContext:
        """Return the context; one for all, so that connections are shared.

        Raises:
            UpstreamRefused: The file can't be used.
        """
        async with self._reading:
            try:
                stamp = stamp_of(self._path.stat())
                if self._context is None or stamp != self._stamp:
                    self._context = await asyncio.to_thread(self._read)
                    self._stamp = stamp
            except ssl.SSLError as error:
                raise UpstreamRefused(
                    f"the ca_file {self._path} holds no certificate in PEM form"
                ) from error
            except OSError as error:
                raise UpstreamRefused(
                    f"the ca_file {self._path} can't be read: {error.strerror};"
                    " make it readable for git-mirror's user"
                ) from error
            return self._context

    def _read(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        context.load_verify_locations(cafile=self._path)
        return context


DIRECT: Final = Route(RouteSettings())
"""With the system's authorities, through no proxy."""
