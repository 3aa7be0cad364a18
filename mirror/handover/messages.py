"""What the two processes of a hand-over say to each other: lines of JSON, each a `what` and more.

They are of different versions: see the package's own words on what may change here.
"""

import asyncio
import json
import socket
from typing import Any, Final

from mirror.errors import LocalError

PROTOCOL: Final = 1

LINE_BYTES_MAX: Final = 64 << 20
"""How fresh each of 100,000 repositories is takes 10 MB."""


class HandOverFailed(LocalError):
    """The other process does not do its part."""

    label = "hand_over_failed"


class Channel:
    """One end of the way between the two."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, connected: socket.socket) -> "Channel":
        """Take over a connected socket."""
        reader, writer = await asyncio.open_unix_connection(sock=connected, limit=LINE_BYTES_MAX)
        return cls(reader, writer)

    def tell(self, what: str, **more: Any) -> None:
        """Say something; to nobody, where the other is gone."""
        if not self._writer.is_closing():
            self._writer.write(json.dumps({"what": what, **more}).encode() + b"\n")

    async def hear(self) -> dict[str, Any] | None:
        """Return what the other says next; `None` once it is gone.

        Raises:
            HandOverFailed: It makes no sense.
        """
        try:
            line = await self._reader.readline()
        except (ConnectionError, ValueError):
            return None
        if not line.endswith(b"\n"):
            return None
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if not isinstance(message, dict) or not isinstance(message.get("what"), str):
            raise HandOverFailed("the other process says what is no message")
        return message

    async def expect(self, what: str) -> dict[str, Any]:
        """Return the message of that name.

        Raises:
            HandOverFailed: The other says something else, such as why it `failed`, or is gone.
        """
        message = await self.hear()
        if message is None:
            raise HandOverFailed("the other process has ended")
        if message["what"] == "failed":
            raise HandOverFailed(str(message.get("error")))
        if message["what"] != what:
            raise HandOverFailed(f"the other process says {message['what']!r}, not {what!r}")
        return message

    def close(self) -> None:
        """End it."""
        self._writer.close()
