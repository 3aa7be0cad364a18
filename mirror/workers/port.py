"""The port that all workers share: taken by the main process before any of them listens.

It is bound without listening, so that it gets no connection, and nobody else gets the port while a
worker is started anew.
"""

import asyncio
import socket
from contextlib import AsyncExitStack

from mirror.config import ListenAddress
from mirror.serving import cannot_listen


async def reserve(stack: AsyncExitStack, address: ListenAddress) -> ListenAddress:
    """Take every address that `address` stands for; returns it with the port that was chosen.

    Args:
        stack: Gives them back.
        address: The configured one. With port 0, the port is the same for all.

    Raises:
        LocalError: One is taken already.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        port = address.port
        for family, kind, protocol, _, place in dict.fromkeys(found):
            one = stack.enter_context(socket.socket(family, kind, protocol))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind((place[0], port, *place[2:]))
            port = one.getsockname()[1]
            # Only now: before, it would let us share the port with another service of this user.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError as error:
        raise cannot_listen(address, error) from error
    return ListenAddress(address.host, port)
