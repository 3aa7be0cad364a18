"""What is asked and how to read the answer: pkt-lines and protocol v2 bodies (gitprotocol-v2(5)).

Written anew on purpose: a mistake in the mirror's own wire code must not hide itself here.
"""

from dataclasses import dataclass
from typing import Final

from benchmarks.http_client import Request

FLUSH: Final = b"0000"
DELIM: Final = b"0001"
AGENT: Final = ("User-Agent", "git/2.39.5")
V2: Final = (
    AGENT,
    ("Git-Protocol", "version=2"),
    ("Content-Type", "application/x-git-upload-pack-request"),
    ("Accept", "application/x-git-upload-pack-result"),
)
HEADS_AND_TAGS: Final = ("refs/heads/", "refs/tags/")


def line(text: str) -> bytes:
    return b"%04x%s\n" % (len(text) + 5, text.encode())


def poll_v0(path: str) -> Request:
    """What go-git asks at each poll: Argo CD, Flux, Fleet."""
    return Request(f"{path}/info/refs?service=git-upload-pack", headers=(AGENT,))


def poll_v2(path: str, prefixes: tuple[str, ...] = HEADS_AND_TAGS) -> Request:
    """What git's ls-remote asks after the capabilities."""
    arguments = ["peel", "symrefs", *(f"ref-prefix {prefix}" for prefix in prefixes)]
    return _command(path, "ls-refs", arguments)


def fetch(path: str, want: str, *, have: str | None = None, depth: int | None = None) -> Request:
    """What git asks for once the negotiation is over."""
    arguments = ["thin-pack", "no-progress", "ofs-delta", f"want {want}"]
    if depth is not None:
        arguments.append(f"deepen {depth}")
    if have is not None:
        arguments.append(f"have {have}")
    return _command(path, "fetch", [*arguments, "done"])


def _command(path: str, name: str, arguments: list[str]) -> Request:
    head = line(f"command={name}") + line("agent=git/2.39.5") + line("object-format=sha1")
    body = head + DELIM + b"".join(map(line, arguments)) + FLUSH
    return Request(f"{path}/git-upload-pack", "POST", V2, body)


@dataclass(frozen=True, slots=True)
class FetchAnswer:
    """A v2 answer to `fetch`, taken apart."""

    shallow: tuple[str, ...]
    pack: bytes

    @classmethod
    def parse(cls, body: bytes) -> "FetchAnswer":
        """Take an answer apart.

        Raises:
            ValueError: It is none, or upload-pack reports an error in it.
        """
        shallow, pack, at, in_pack = [], [], 0, False
        while at < len(body):
            length = int(body[at : at + 4], 16)
            payload = body[at + 4 : at + length]
            at += max(length, 4)
            if in_pack and payload[:1] == b"\x01":
                pack.append(payload[1:])
            elif payload[:1] == b"\x03" or payload.startswith(b"ERR"):
                raise ValueError(f"upload-pack says {payload[1:].decode(errors='replace')}")
            elif payload == b"packfile\n":
                in_pack = True
            elif payload.startswith(b"shallow "):
                shallow.append(payload.split()[1].decode())
        if at != len(body) or not in_pack:
            raise ValueError(f"not a whole answer: {body[:80]!r} ... {body[-40:]!r}")
        return cls(tuple(shallow), b"".join(pack))
