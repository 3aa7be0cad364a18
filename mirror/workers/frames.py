"""Messages as bytes: four bytes of length, big-endian, and that much JSON. Pure.

The other end is ours, but a frame is checked all the same: what is not a message ends the channel.
"""

import struct
from typing import Final

from pydantic import TypeAdapter, ValidationError

from mirror.errors import OtherProcessGone
from mirror.workers.messages import Envelope

FRAME_BYTES_MAX: Final = 32 << 20
"""The longest is a publish of `CHANGES_MAX` refs with names as long as they may be."""

_LENGTH: Final = struct.Struct(">I")
_ENVELOPE: Final = TypeAdapter(Envelope)


class ChannelError(OtherProcessGone):
    """The channel to another process of ours is broken, or carries what is no message."""

    label = "channel_error"


def encode(envelope: Envelope) -> bytes:
    """Return the frame of a message.

    Raises:
        ChannelError: It would be too long.
    """
    body = _ENVELOPE.dump_json(envelope)
    if len(body) > FRAME_BYTES_MAX:
        raise ChannelError(f"a message of {len(body)} bytes is too long")
    return _LENGTH.pack(len(body)) + body


class Decoder:
    """Takes bytes as they come and gives the messages that are complete."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Envelope]:
        """Return the messages that `data` completes.

        Raises:
            ChannelError: It is no message.
        """
        self._buffer += data
        found = []
        position = 0
        while len(self._buffer) - position >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, position)
            if length > FRAME_BYTES_MAX:
                raise ChannelError(f"a message of {length} bytes is too long")
            end = position + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            found.append(_read(bytes(self._buffer[position + _LENGTH.size : end])))
            position = end
        del self._buffer[:position]
        return found


def _read(body: bytes) -> Envelope:
    try:
        return _ENVELOPE.validate_json(body)
    except ValidationError as error:
        raise ChannelError(f"no message: {error.errors()[0]['msg']}") from error
