"""The port that all workers share: taken by the main process before any of them listens.

It is bound without listening, so that it gets no connection, and nobody else gets the port while a
worker is started anew.
"""

import socket
from contextlib import AsyncExitStack

from mirror.config import ListenAddress
from mirror.web.listening import bind


async def reserve(stack: AsyncExitStack, address: ListenAddress) -> ListenAddress:
    """Take every address that `address` stands for; returns it with the port that was chosen.

    Args:
        stack: Gives them back.
        address: The configured one. With port 0, the port is the same for all.

    Raises:
        LocalError: One is taken already.
    """
    bound = await bind(address)
    for one in bound:
        stack.enter_context(one)
        # Only now: before, it would let us share the port with another service of this user.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return ListenAddress(address.host, bound[0].getsockname()[1])
