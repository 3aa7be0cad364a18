"""Where readers come in: sockets that are bound, and sites that accept from them.

A Unix socket is for a proxy on this machine, whose permission is that of the file. All sockets are
bound by the main process, which keeps them; workers inherit theirs.
"""

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from mirror.config import ListenAddress
from mirror.errors import LocalError
from mirror.web.lane_runner import CrowdRunner
from mirror.web.tls_site import BACKLOG, TlsSite

UNIX_SOCKET_MODE: Final = 0o660
"""The proxy's user has to be of the service's group."""

_EVERY_IPV6: Final = "::"
_EVERY_IPV4: Final = "0.0.0.0"  # noqa: S104 - where the configuration asks for every address
_LACKING: Final = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})
"""What a machine without IPv6 says of its addresses."""


class Site(web.BaseSite):
    """Accepts from a bound socket."""

    def __init__(self, runner: web.AppRunner, bound: socket.socket) -> None:
        super().__init__(runner, backlog=BACKLOG)
        self._bound = bound

    @property
    def name(self) -> str:
        """Where it is, for aiohttp's own messages."""
        host, port = self._bound.getsockname()[:2]
        return f"http://{host}:{port}"

    async def start(self) -> None:
        """Begin to accept connections."""
        await super().start()
        server = self._runner.server
        if server is None:
            raise RuntimeError("the runner is not set up")
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(server, sock=self._bound, backlog=self._backlog)


class UnixSocketSite(web.BaseSite):
    """Accepts from a Unix socket that was bound before, which aiohttp's own site can't."""

    def __init__(self, runner: web.AppRunner, bound: socket.socket) -> None:
        super().__init__(runner, backlog=BACKLOG)
        self._bound = bound

    @property
    def name(self) -> str:
        """Where it is, for aiohttp's own messages."""
        return f"unix:{self._bound.getsockname()}"

    async def start(self) -> None:
        """Begin to accept connections."""
        await super().start()
        server = self._runner.server
        if server is None:
            raise RuntimeError("the runner is not set up")
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(server, sock=self._bound, backlog=BACKLOG)


def bind_unix_socket(path: Path) -> socket.socket:
    """Bind a Unix socket, instead of one that a crash left there; removing it is the caller's.

    Raises:
        LocalError: It can't be made.
    """
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        bound.bind(str(path))
        path.chmod(UNIX_SOCKET_MODE)
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise LocalError(f"can't listen on {path}: {error.strerror or error}") from error
    return bound


async def accept(
    runner: web.AppRunner, bound: Iterable[socket.socket], *, tls: ssl.SSLContext | None = None
) -> None:
    """Accept connections from sockets; the caller keeps its own descriptors.

    Args:
        runner: Serves them.
        bound: TCP sockets, which are to speak TLS where there is `tls`, and Unix sockets.
        tls: To speak it.

    Raises:
        OSError: It can't be listened on one of them.
    """
    for one in bound:
        own = socket.socket(fileno=os.dup(one.fileno()))
        site: web.BaseSite
        if own.family == socket.AF_UNIX:
            site = UnixSocketSite(runner, own)
        elif tls is None:
            site = Site(runner, own)
        elif isinstance(runner, CrowdRunner):
            site = TlsSite(runner, own, tls=tls)
        else:
            raise TypeError("TLS needs a runner that knows its connections")
        try:
            await site.start()
        except BaseException:
            own.close()
            raise


async def listen(runner: web.AppRunner, address: ListenAddress) -> ListenAddress:
    """Bind an address and accept from it; returns it, for port 0 lets the system choose.

    Raises:
        LocalError: The address is not to be had.
    """
    bound = await bind(address)
    host, port = bound[0].getsockname()[:2]
    try:
        await accept(runner, bound)
    except OSError as error:
        raise cannot_listen(address, error) from error
    finally:
        for one in bound:
            one.close()
    return ListenAddress(host, port)


async def bind(address: ListenAddress) -> list[socket.socket]:
    """Take every address that `address` stands for, all with one port; at least one.

    A name may stand for several. What the machine lacks, IPv6 or IPv4, is left out where there is
    something else.

    Args:
        address: The configured one; the system chooses a port instead of 0.

    Raises:
        LocalError: One of them is taken, or there is none.
    """
    bound: list[socket.socket] = []
    lacking: OSError | None = None
    port = address.port
    try:
        for family, place in await places_of(address):
            try:
                one = bound_socket(family, (place[0], port, *place[2:]))
            except OSError as error:
                if error.errno not in _LACKING:
                    raise
                lacking = error
                continue
            bound.append(one)
            port = one.getsockname()[1]
        if lacking is not None and not bound:
            raise lacking
    except OSError as error:
        for one in bound:
            one.close()
        raise cannot_listen(address, error) from error
    return bound


async def places_of(address: ListenAddress) -> list[tuple[socket.AddressFamily, tuple[Any, ...]]]:
    """Return every address that `address` stands for, as `socket.bind` wants it."""
    found = await asyncio.get_running_loop().getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    places = [(family, place) for family, _, _, _, place in found]
    if places[0][1][0] == _EVERY_IPV6:
        # One socket could do for both, but would show IPv4 clients under names of IPv6.
        places.append((socket.AF_INET, (_EVERY_IPV4, address.port)))
    return list(dict.fromkeys(places))


def bound_socket(
    family: socket.AddressFamily, place: tuple[Any, ...], *, is_shared: bool = False
) -> socket.socket:
    """Bind one address; `is_shared` lets other sockets of this user have it too (SO_REUSEPORT)."""
    with ExitStack() as stack:
        one = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(place)
        stack.pop_all()
        return one


def cannot_listen(address: ListenAddress, error: OSError) -> LocalError:
    """Return the error to raise where an address can't be listened on."""
    return LocalError(
        f"can't listen on {address}: {error.strerror}; is another service using the port?"
    )
