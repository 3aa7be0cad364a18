"""A request of our own, to see that requests are answered: what the watchdog depends on.

The canary is a repository of one ref, which needs no disk and no upstream, and which anybody may
see: it looks the same everywhere. It is asked for as git asks (v0), through the socket, the parser,
the routes and the middleware that readers' polls go through.
"""

import asyncio
import socket
import ssl
from typing import Final

from aiohttp import web

from mirror.config import ListenAddress
from mirror.errors import LocalError
from mirror.web.protocol import OPERATION, Operation
from mirror.wire.pktline import FLUSH_PKT, encode

CANARY_PATH: Final = "/.canary/info/refs"
"""No repository has it: no segment of a name begins with a dot."""

ADVERTISEMENT: Final = (
    encode(b"# service=git-upload-pack\n")
    + FLUSH_PKT
    + encode(b"0123456789abcdef0123456789abcdef01234567 refs/heads/canary\0agent=git-mirror\n")
    + FLUSH_PKT
)

_REQUEST: Final = (
    f"GET {CANARY_PATH}?service=git-upload-pack HTTP/1.1\r\n"
    "Host: canary\r\nUser-Agent: git-mirror-canary\r\nConnection: close\r\n\r\n"
).encode()

_ANSWER_BYTES_MAX: Final = 64 * 1024


async def canary(request: web.Request) -> web.Response:
    """GET /.canary/info/refs."""
    request[OPERATION] = Operation.PROBE
    return web.Response(
        body=ADVERTISEMENT,
        content_type="application/x-git-upload-pack-advertisement",
        headers={"Cache-Control": "no-cache"},
    )


async def ask_canary(address: ListenAddress, tls: ssl.SSLContext | None) -> None:
    """Ask through the front door; whichever worker accepts answers.

    Args:
        address: Where we listen; seen from this machine, if that is every address.
        tls: What listeners speak TLS with, where they do.

    Raises:
        LocalError: It is not answered, or not like that.
        OSError: There is no connection.
    """
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)  # noqa: S104
    reader, writer = await asyncio.open_connection(
        host, address.port, ssl=None if tls is None else _trusting()
    )
    await _ask(reader, writer)


async def ask_own_canary(runner: web.AppRunner) -> None:
    """Ask what serves in this process, over a connection that nobody else could accept.

    Raises:
        LocalError: It is not answered, or not like that.
        OSError: There is no connection.
    """
    server = runner.server
    if server is None:
        raise LocalError("nothing serves any more")
    near, far = socket.socketpair()
    far.setblocking(False)  # noqa: FBT003
    await asyncio.get_running_loop().connect_accepted_socket(server, far)
    await _ask(*await asyncio.open_unix_connection(sock=near))


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        writer.write(_REQUEST)
        answer = await reader.read(_ANSWER_BYTES_MAX)
        while answer and not answer.endswith(ADVERTISEMENT) and len(answer) < _ANSWER_BYTES_MAX:
            more = await reader.read(_ANSWER_BYTES_MAX)
            if not more:
                break
            answer += more
    finally:
        writer.transport.abort()
    if not answer.startswith(b"HTTP/1.1 200 ") or not answer.endswith(ADVERTISEMENT):
        raise LocalError(f"the canary got another answer: {answer[:100]!r}")


def _trusting() -> ssl.SSLContext:
    """Return what takes any certificate: it is made out to another name, and sent to ourselves."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
