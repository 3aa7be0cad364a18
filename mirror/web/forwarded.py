"""Who a request is from, and how it was addressed, where a proxy stands in between. Pure.

Only proxies that the configuration names are believed; what others send in `X-Forwarded-*` headers
is not looked at.
"""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mirror.config import Network


@dataclass(frozen=True, slots=True)
class Proxies:
    """The proxies that are believed.

    Attributes:
        trusted: Where they are.
        trusts_local: Whether those who come by a Unix socket are.
    """

    trusted: Sequence[Network] = ()
    trusts_local: bool = False

    @property
    def are_there(self) -> bool:
        """Whether anybody is believed."""
        return bool(self.trusted) or self.trusts_local

    def trusts(self, address: str | None) -> bool:
        """Tell whether an address is that of a proxy of ours; `None` for a Unix socket."""
        return self.trusts_local if address is None else contains(self.trusted, address)

    def client(self, peer: str | None, forwarded_for: Sequence[str]) -> str:
        """Return a client's address.

        Each proxy appends who it had the request from: the last one that is no proxy of ours is
        the client; what stands before it anybody may have made up.

        Args:
            peer: Who the connection is from; `None` for a Unix socket.
            forwarded_for: The `X-Forwarded-For` headers, in order.
        """
        if not self.trusts(peer):
            return peer or "local"
        hops = [hop.strip() for header in forwarded_for for hop in header.split(",")]
        client = peer or "local"
        for hop in reversed(hops):
            if not is_address(hop):
                break
            client = hop
            if not self.trusts(hop):
                break
        return client

    def origin(
        self, peer: str | None, headers: Mapping[str, str], scheme: str, host: str
    ) -> tuple[str, str]:
        """Return the scheme and host by which a reader came: of several proxies the outermost's."""
        if not self.trusts(peer):
            return scheme, host
        scheme = headers.get("X-Forwarded-Proto", scheme).partition(",")[0].strip().lower()
        return scheme, headers.get("X-Forwarded-Host", host).partition(",")[0].strip()


NO_PROXIES: Final = Proxies()
"""Nobody is believed."""


def contains(networks: Sequence[Network], address: str) -> bool:
    """Tell whether an address is in one of some networks."""
    if not networks:
        return False
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped  # an IPv4 client of a listener on [::]
    return any(found in network for network in networks)


def is_address(text: str) -> bool:
    """Tell whether a text is an IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
