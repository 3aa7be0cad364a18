"""Which addresses the name of an upstream's host may lead to.

A reader's request may make us connect to an upstream that nobody looked at before. Whoever answers
for the host's name could lead us to a service of our own network (DNS rebinding): the addresses
that are connected to are the ones looked at here, so that there is no time between. An address that
the configuration itself names is not looked up, and not refused.
"""

import ipaddress
import socket
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from aiohttp.abc import AbstractResolver, ResolveResult

from mirror.config import Place
from mirror.errors import UpstreamRefused
from mirror.upstream.storage import Reach, reach_of

_OWN: Final = frozenset({Reach.PUBLIC, Reach.PRIVATE, Reach.MACHINE})
"""Where a host that is said to be private may be. Never link-local: clouds have services there."""


class GuardedResolver(AbstractResolver):
    """Looks names up, and gives only the addresses that they may lead to.

    It resolves the hosts of the places that it is made for, and no other: what the configuration
    does not name is not even looked up.
    """

    def __init__(
        self, places: Iterable[Place], inner: AbstractResolver, *, proxies: Iterable[str] = ()
    ) -> None:
        """Look nothing up yet.

        Args:
            places: Whose hosts it looks up.
            inner: Does that.
            proxies: URLs of proxies to them, which may be anywhere. A proxy looks names up itself,
                and it is for it to say what may be reached.
        """
        self._inner = inner
        self._proxies: set[str | None] = set()
        self._may_be_private: dict[str, bool] = {}
        self.admit(places, proxies=proxies)

    def admit(self, places: Iterable[Place], *, proxies: Iterable[str] = ()) -> None:
        """Look up the hosts of other places from now on."""
        self._proxies = {urlsplit(one).hostname for one in proxies}
        self._may_be_private = {}
        for place in places:
            host = urlsplit(place.url).hostname or ""
            known = self._may_be_private.get(host, True)
            self._may_be_private[host] = known and place.may_be_private

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Look a name up; aiohttp connects to what is returned.

        Raises:
            OSError: It can't be looked up.
            UpstreamRefused: It leads nowhere that it may lead to.
        """
        if host.lower() in self._proxies:
            return await self._inner.resolve(host, port, family)
        may_be_private = self._may_be_private.get(host.lower())
        if may_be_private is None:
            raise UpstreamRefused(f"{host} is not a host that `upstreams` names")
        found = await self._inner.resolve(host, port, family)
        allowed = _OWN if may_be_private else frozenset({Reach.PUBLIC})
        usable = [one for one in found if _reach(one["host"]) in allowed]
        if found and not usable:
            advice = "" if may_be_private else "; if that is right, say `private: true`"
            raise UpstreamRefused(
                f"{host} leads to {found[0]['host']}, which is not a public address{advice}"
            )
        return usable

    async def close(self) -> None:
        """Let go of the resolver behind."""
        await self._inner.close()


def _reach(text: str) -> Reach:
    return reach_of(ipaddress.ip_address(text.partition("%")[0]))
