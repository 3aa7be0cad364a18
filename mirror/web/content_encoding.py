"""Undoes the Content-Encoding of request bodies (RFC 9110, 8.4), a piece at a time.

Knows no connection: bytes in, pieces of at most `PIECE_BYTES_MAX` out, so that whoever adds them up
can stop before a small body has become a large one. Stricter than git's own server, which ignores
what follows the first gzip member: nothing that was sent goes unread.

gzip is RFC 1952, several members included; deflate is RFC 1950, and RFC 1951 from those clients
that took the name by its word.
"""

import zlib
from collections.abc import Iterator
from typing import ClassVar, Final

from mirror.errors import ClientError, ProtocolError

ENCODINGS: Final = ("gzip", "deflate", "identity")
_SYNONYMS: Final = {"": "identity", "x-gzip": "gzip"}

MEMBERS_MAX: Final = 1000
"""Clients send one gzip member. An empty one is 20 bytes that cost a decompressor and yield
nothing."""

_STEP_BYTES: Final = 4096
"""zlib copies what it leaves of its input, at each member's end and each piece."""

_GZIP: Final = zlib.MAX_WBITS | 16
_ZLIB: Final = zlib.MAX_WBITS
_RAW: Final = -zlib.MAX_WBITS
_CM_MASK: Final = 0x0F
_CM_DEFLATE: Final = 8


class UnsupportedEncoding(ClientError):
    """A Content-Encoding that is not undone here."""

    status = 415
    label = "unsupported_type"


class BodyDecoder:
    """Takes a body as it comes over the wire and gives what it stands for."""

    PIECE_BYTES_MAX: ClassVar[int] = 64 * 1024
    """The longest piece that decompressing gives."""

    def __init__(self, encoding: str) -> None:
        """Take the value of Content-Encoding, empty where there is none.

        Raises:
            UnsupportedEncoding: It is none of `ENCODINGS`, or several.
        """
        name = encoding.strip().lower()
        self._encoding = _SYNONYMS.get(name, name)
        if self._encoding not in ENCODINGS:
            raise UnsupportedEncoding(
                f"expected Content-Encoding gzip or none, got {encoding[:100]!r}"
            )
        self._inflater: zlib._Decompress | None = None
        self._members = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take the next bytes of the body and yield what they stand for; nothing is ever empty.

        Raises:
            ProtocolError: They are not what the Content-Encoding says.
        """
        if self._encoding == "identity":
            if data:
                yield data
            return
        for start in range(0, len(data), _STEP_BYTES):
            yield from self._inflate(data[start : start + _STEP_BYTES])

    def finish(self) -> None:
        """Say that the body is over. One without a single byte is empty, however it is encoded.

        Raises:
            ProtocolError: It ended too early.
        """
        if self._inflater is not None and not self._inflater.eof:
            raise ProtocolError(f"the request body ends in the middle of its {self._encoding} data")

    def _inflate(self, rest: bytes) -> Iterator[bytes]:
        while True:
            inflater = self._inflater_for(rest)
            try:
                piece = inflater.decompress(rest, self.PIECE_BYTES_MAX)
            except zlib.error as error:
                raise ProtocolError(
                    f"the request body can't be decoded as {self._encoding}: {error}"
                ) from error
            if piece:
                yield piece
            rest = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
            # A whole piece may have left something within the decompressor.
            if not rest and (inflater.eof or len(piece) < self.PIECE_BYTES_MAX):
                return

    def _inflater_for(self, data: bytes) -> "zlib._Decompress":
        """Return what takes the next bytes: a new one for the first, and after a gzip member."""
        if self._inflater is not None and not self._inflater.eof:
            return self._inflater
        self._members += 1
        if self._members > 1 and self._encoding != "gzip":
            raise ProtocolError("the request body goes on after the end of its deflate data")
        if self._members > MEMBERS_MAX:
            raise ProtocolError(f"more than {MEMBERS_MAX} gzip members in a request body")
        wbits = _GZIP
        if self._encoding == "deflate":
            wbits = _ZLIB if data[0] & _CM_MASK == _CM_DEFLATE else _RAW
        self._inflater = zlib.decompressobj(wbits)
        return self._inflater
