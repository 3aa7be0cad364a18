"""Hands the pages of a large answer to the socket, where the transport would have them copied.

A transport is passed by only while it has nothing to send itself, and gets back what the socket
does not take at once; so the order of bytes on a connection is never in doubt.
"""

import asyncio
import os
from contextlib import suppress
from typing import Final

from mirror.web.repeating import Prepared

SENT_AS_FILE_BYTES_MIN: Final = 64 * 1024
"""From here on handing over pages costs less than copying."""


def send_as_file(transport: asyncio.Transport, head: bytes, prepared: Prepared) -> bool:
    """Send `head` and the body of `prepared`; `False`, with nothing sent, where it can't."""
    socket = transport.get_extra_info("socket")
    is_encrypted = transport.get_extra_info("sslcontext") is not None
    if socket is None or is_encrypted or transport.get_write_buffer_size():
        return False
    try:
        file = prepared.file()
    except OSError:  # out of descriptors
        return False
    descriptor, body = socket.fileno(), memoryview(prepared.body)
    try:
        sent = os.write(descriptor, head)
    except BlockingIOError:
        return False
    except OSError:
        transport.abort()
        return True
    if sent < len(head):
        transport.writelines((head[sent:], body))
        return True
    sent = 0
    with suppress(OSError):  # a client that is gone: the transport finds that out
        sent = os.sendfile(descriptor, file, 0, len(body))
    if sent < len(body):
        transport.write(body[sent:])
    return True
