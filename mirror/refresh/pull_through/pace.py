"""How often first clones may begin: in all, and for each client. Pure: the time is passed in.

Token buckets: a full minute's worth may come at once, and comes back evenly.
"""

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

CLIENTS_MAX: Final = 10_000
"""Clients remembered. Who is forgotten begins anew; what may begin in all bounds that."""

_CLIENT_PREFIX_IPV6: Final = 64
"""One customer has at least so many addresses."""


@dataclass(slots=True)
class _Bucket:
    left: float
    filled_at: float

    def fill(self, now: float, per_minute: int) -> None:
        self.left = min(per_minute, self.left + (now - self.filled_at) * per_minute / 60)
        self.filled_at = now

    def wait_seconds(self, per_minute: int) -> float:
        return 0.0 if self.left >= 1 else (1 - self.left) * 60 / per_minute


class Pace:
    """Lets first clones begin."""

    def __init__(self, *, per_minute: int, per_client_per_minute: int) -> None:
        self._per_minute = per_minute
        self._per_client = per_client_per_minute
        self._all: _Bucket | None = None
        self._clients: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, now: float, client: str | None) -> float:
        """Let one begin; returns 0.0, or in how many seconds it may.

        Args:
            now: The time.
            client: The address of who asks for it; `None` for the operator, whom nothing bounds.
        """
        if client is None:
            return 0.0
        whole = self._all = self._all or _Bucket(self._per_minute, now)
        own = self._bucket(client_of(client), now)
        whole.fill(now, self._per_minute)
        own.fill(now, self._per_client)
        wait = max(own.wait_seconds(self._per_client), whole.wait_seconds(self._per_minute))
        if wait == 0.0:
            own.left -= 1
            whole.left -= 1
        return wait

    def _bucket(self, client: str, now: float) -> _Bucket:
        bucket = self._clients.setdefault(client, _Bucket(self._per_client, now))
        self._clients.move_to_end(client)
        if len(self._clients) > CLIENTS_MAX:
            self._clients.popitem(last=False)
        return bucket


def client_of(address: str) -> str:
    """Return whom an address counts for."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(ip), _CLIENT_PREFIX_IPV6), strict=False))
