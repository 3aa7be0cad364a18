"""Packs framed for side-band-64k, the form in which nearly every reader takes them.

A pack is framed once, when it is made. The few readers that want small packets, or none at all, get
theirs unframed and framed anew on the way.
"""

from typing import Final

from mirror.wire.answers import Band, encode_band, encode_keepalive
from mirror.wire.pktline import PacketDecoder
from mirror.wire.requests import SideBand

STORED: Final = SideBand.LARGE


def frame(data: bytes | memoryview) -> bytes:
    """Frame a part of a pack as it is stored."""
    return encode_band(Band.PACK, data, STORED)


class Reframer:
    """Frames anew what comes as it is stored, for a reader with another side-band or none."""

    def __init__(self, side_band: SideBand) -> None:
        self._side_band = side_band
        self._decoder = PacketDecoder()

    def feed(self, framed: bytes | memoryview) -> bytes | memoryview:
        """Take a piece of a stored pack; return it as the reader wants it.

        An empty one is a sign of life.
        """
        if not framed:
            return encode_keepalive(self._side_band)
        if self._side_band is STORED:
            return framed
        self._decoder.feed(bytes(framed))
        packets = (packet for packet in self._decoder if isinstance(packet, bytes))
        return b"".join(
            encode_band(Band.PACK, memoryview(packet)[1:], self._side_band) for packet in packets
        )
