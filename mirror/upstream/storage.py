"""Where an upstream's answers may send us: the storage that LFS objects are downloaded from.

A forge may name any URL, and somebody who can write to it may be behind that. So a host other than
the upstream's own is only spoken to at a public address, or at an address of the kind that the
upstream's own has: a forge in a private network may keep its objects in that network, one on this
machine on this machine. The address is checked as it is connected to, not before, so that a name
that changes its meaning meanwhile gains nothing. No credentials of ours ever go there.
"""

import enum
import ipaddress
import socket
from contextlib import AsyncExitStack
from typing import Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from mirror.errors import UpstreamRefused, UpstreamUnavailable
from mirror.upstream.failures import reason_of
from mirror.upstream.line import Line

CONNECTIONS_MAX: Final = 100
"""Of each kind of storage; there are few kinds."""

_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: what IPv6-only networks see


class Reach(enum.Enum):
    """What kind of network an address belongs to."""

    PUBLIC = "public"
    PRIVATE = "private"
    LINK = "link-local"
    MACHINE = "loopback"


Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def reach_of(address: Address) -> Reach:
    """Return the kind of an address; one that stands for another is of the other's kind."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = ipaddress.IPv4Address(address.packed[-4:])
        if inner is not None:
            return reach_of(inner)
    if address.is_loopback or address.is_unspecified:
        return Reach.MACHINE
    if address.is_link_local:
        return Reach.LINK
    if address.is_global and not address.is_multicast and not address.is_reserved:
        return Reach.PUBLIC
    return Reach.PRIVATE


class Storage:
    """Sessions for hosts that only answers name, one for each set of kinds that may be reached."""

    def __init__(self, stack: AsyncExitStack, *, resolver: AbstractResolver | None = None) -> None:
        """Begin with none.

        Args:
            stack: Takes the end of the sessions.
            resolver: Looks up the upstreams' own hosts; by default the system does.
        """
        self._resolver = resolver or ThreadedResolver()
        self._stack = stack
        self._others: dict[frozenset[Reach], aiohttp.ClientSession] = {}

    async def line_to(self, target: URL, *, line: Line, upstream: URL) -> Line:
        """Return what may speak to `target`, as an answer of `upstream` named it.

        The way is the upstream's own: storage of a private forge may have a certificate of the same
        private authority. Where a proxy leads there it looks up the names, and it is for the proxy
        to say what may be reached; an address is checked here all the same.

        Args:
            target: Where to go.
            line: To the upstream.
            upstream: The repository's URL.

        Raises:
            UpstreamError: Nothing may, or the upstream's own kind can't be found out.
        """
        if target.host == upstream.host:
            return line
        is_proxied = line.route.proxy is not None
        own = _literal_reaches(upstream) if is_proxied else await self._reaches_of(upstream)
        allowed = frozenset({Reach.PUBLIC}) | own
        literal = _literal(target.host or "")
        if literal is not None and reach_of(literal) not in allowed:
            raise UpstreamRefused(_sentence(target.host, reach_of(literal)))
        if is_proxied:
            return line
        if allowed not in self._others:
            connector = aiohttp.TCPConnector(
                limit=CONNECTIONS_MAX, resolver=_Guarded(allowed), use_dns_cache=False
            )
            self._others[allowed] = await self._stack.enter_async_context(
                aiohttp.ClientSession(
                    connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
                )
            )
        return Line(self._others[allowed], line.route)

    async def _reaches_of(self, upstream: URL) -> frozenset[Reach]:
        """Return the kinds of the upstream's own addresses.

        Raises:
            UpstreamError: It has none, or none that it may have.
        """
        host = upstream.host or ""
        literal = _literal(host)
        if literal is not None:
            return frozenset({reach_of(literal)})
        try:
            found = await self._resolver.resolve(host, 0, socket.AF_UNSPEC)
        except OSError as error:
            raise UpstreamUnavailable(f"{host} can't be looked up: {reason_of(error)}") from error
        return frozenset(_reach(one["host"]) for one in found)


class _Guarded(AbstractResolver):
    """Finds only addresses of some kinds."""

    def __init__(self, allowed: frozenset[Reach]) -> None:
        self._allowed = allowed
        self._resolver = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Look up a name; aiohttp calls this.

        Raises:
            OSError: It has no address.
            UpstreamRefused: It has none that may be connected to.
        """
        found = await self._resolver.resolve(host, port, family)
        usable = [one for one in found if _reach(one["host"]) in self._allowed]
        if not usable:
            raise UpstreamRefused(_sentence(host, _reach(found[0]["host"])))
        return usable

    async def close(self) -> None:
        """Nothing is open; aiohttp calls this."""


def _literal_reaches(upstream: URL) -> frozenset[Reach]:
    literal = _literal(upstream.host or "")
    return frozenset() if literal is None else frozenset({reach_of(literal)})


def _reach(text: str) -> Reach:
    return reach_of(ipaddress.ip_address(text.partition("%")[0]))


def _literal(host: str) -> Address | None:
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761, whoever looks it up
        return ipaddress.IPv4Address("127.0.0.1")
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _sentence(host: str | None, reach: Reach) -> str:
    return (
        f"the upstream keeps LFS objects at {host}, which is at a {reach.value} address while the"
        " upstream itself is at none; that is not followed"
    )
