"""Bodies whose end can't be found: their chunks stopped making sense while somebody read them.

aiohttp notes that for the next request, and lets who reads the body wait for bytes that never come:
until `mirror.web.protocol`'s limits, and 10 seconds more for what is left. It notices when data
come, and when a reader makes room for more of what came before. Two internals of
`web.RequestHandler` tell of it; where they are missing, it stays at that.
"""

from collections.abc import Sequence
from typing import Any, Final

from aiohttp import web

BROKEN: Final = "its chunks make no sense"
"""What is said of one."""


def is_broken(request: web.Request) -> bool:
    """Tell whether a request's body has no end that could be found."""
    if request.content.is_eof():
        return False
    noted: Sequence[Any] = getattr(request.protocol, "_messages", ())
    # What stands there for a request that is none has an error in the place of a method.
    return bool(noted) and hasattr(noted[-1][0], "exc")


def tell_reader(handler: web.RequestHandler) -> None:
    """Tell who reads a body of `handler` if it has just turned out to be broken."""
    request = getattr(handler, "_current_request", None)
    if isinstance(request, web.Request) and is_broken(request):
        request.content.set_exception(web.RequestPayloadError(BROKEN))


def give_up(request: web.Request) -> None:
    """Wait for no more of a body that is broken, once its request is answered."""
    if is_broken(request):
        request.content.feed_eof()
