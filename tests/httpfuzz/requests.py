"""The requests that streams begin with: what clients of every kind send, byte for byte.

They reach behind the first check: ids that are there, tokens that are good, signatures that fit.
"""

import gzip
import hashlib
import hmac
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from mirror.wire.pktline import FLUSH_PKT, encode
from tests.httpfuzz.estate import AT, OPEN, PRIVATE, PULLED, PUSHED, STRICT, Known
from tests.mirror_service import SECRET
from tests.web.asking import command, fetch_v0, fetch_v2

UPLOAD: Final = b"application/x-git-upload-pack-request"
RECEIVE: Final = b"application/x-git-receive-pack-request"
LFS_TYPE: Final = b"application/vnd.git-lfs+json"
JSON_TYPE: Final = b"application/json"
ZERO_ID: Final = "0" * 40

_DELIVERIES: Final = itertools.count(1)


@dataclass(slots=True)
class Request:
    """One request, to be changed at will before it is encoded.

    Attributes:
        target: The path and the query.
        body: `None` where no length is told.
        signed_for: The forge whose signature is made of the body, last of all.
        chunked: The sizes of the chunks that the body goes in; none: with its length.
        framed: What comes as chunks in place of the body, well-formed or not.
    """

    method: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes | None = None
    version: bytes = b"HTTP/1.1"
    signed_for: str | None = None
    chunked: tuple[int, ...] = ()
    framed: bytes | None = None

    def has(self, name: bytes) -> bool:
        return any(one.lower() == name.lower() for one, _ in self.headers)

    def encode(self) -> bytes:
        """Return it as it goes over the wire."""
        headers, body = list(self.headers), self.body or b""
        if self.signed_for is not None:
            headers += signature(self.signed_for, body)
        if not self.has(b"host"):
            headers.insert(0, (b"Host", b"x"))
        if self.framed is not None:
            headers.append((b"Transfer-Encoding", b"chunked"))
            body = self.framed
        elif self.body is not None and self.chunked:
            headers.append((b"Transfer-Encoding", b"chunked"))
            body = b"".join(_chunks(body, self.chunked))
        elif self.body is not None and not self.has(b"content-length"):
            headers.append((b"Content-Length", b"%d" % len(body)))
        lines = [b"%b %b %b" % (self.method, self.target, self.version)]
        lines += [b"%b: %b" % one for one in headers]
        return b"\r\n".join(lines) + b"\r\n\r\n" + body


def _chunks(body: bytes, sizes: tuple[int, ...]) -> Iterator[bytes]:
    for size in itertools.cycle(sizes):
        if not body:
            break
        yield b"%x\r\n%b\r\n" % (len(body[:size]), body[:size])
        body = body[size:]
    yield b"0\r\n\r\n"


def signature(forge: str, body: bytes) -> list[tuple[bytes, bytes]]:
    """Return what proves a delivery genuine."""
    digest = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest().encode()
    match forge:
        case "github":
            return [(b"X-Hub-Signature-256", b"sha256=" + digest)]
        case "gitlab":
            return [(b"X-Gitlab-Token", SECRET.encode())]
        case "gitea":
            return [(b"X-Gitea-Signature", digest)]
        case _:
            return [(b"X-Hub-Signature", b"sha256=" + digest)]


def requests(known: Known, bundles: tuple[str, ...] = ()) -> list[Request]:
    """Return all kinds of requests, each as its client would send it.

    Args:
        known: What is there.
        bundles: The paths of bundles.
    """
    tip, parent = known.tips[OPEN], known.parents[OPEN]
    token = (b"Authorization", b"Bearer " + known.token.encode())
    found = [
        *(_get(path) for path in (b"/healthz", b"/readyz", b"/metrics", b"/status.json")),
        _get(b"/.canary/info/refs?service=git-upload-pack"),
        _get(b"/nothing/here/info/refs?service=git-upload-pack"),
        Request(b"OPTIONS", b"*"),
        *(_info_refs(name) for name in (OPEN, PRIVATE, STRICT, PUSHED)),
        _info_refs(f"{AT}/{PULLED}"),
        _info_refs(OPEN, (b"Git-Protocol", b"version=2")),
        _info_refs(OPEN, (b"Accept-Encoding", b"deflate, gzip")),
        _info_refs(PRIVATE, token),
        _upload_pack(command("ls-refs", "peel", "symrefs", "unborn"), OPEN, version=2),
        _upload_pack(command("ls-refs", "ref-prefix refs/heads/"), OPEN, version=2),
        _upload_pack(command("ls-refs", "peel"), PRIVATE, token, version=2),
        _upload_pack(command("ls-refs", "peel"), PRIVATE, version=2),
        _upload_pack(command("object-info", "size", f"oid {tip}"), OPEN, version=2),
        _upload_pack(command("bundle-uri"), OPEN, version=2),
        _upload_pack(fetch_v2(tip), OPEN, version=2),
        _upload_pack(fetch_v2(tip, more=["deepen 1", "filter blob:none"]), OPEN, version=2),
        _upload_pack(fetch_v2(tip, more=[f"have {parent}", "thin-pack"]), OPEN, version=2),
        _upload_pack(fetch_v2(more=["want-ref refs/heads/main"]), OPEN, version=2),
        _upload_pack(fetch_v2("1" * 40), OPEN, version=2),
        _upload_pack(fetch_v0(tip), OPEN),
        _upload_pack(fetch_v0(tip, more=["deepen 1"]), STRICT),
        _upload_pack(fetch_v0(tip, capabilities="ofs-delta"), OPEN),
        _gzipped(_upload_pack(fetch_v2(tip, more=["shallow " + parent]), OPEN, version=2)),
        _get(f"/{PUSHED}/info/refs?service=git-receive-pack".encode()),
        _get(f"/{OPEN}/info/refs?service=git-receive-pack".encode()),
        _push(known, PUSHED),
        _push(known, OPEN),
        *_lfs(known),
        *_webhooks(known),
        _get(f"/{OPEN}/bundles/list".encode()),
        _get(f"/{OPEN}/bundles/nothing.bundle".encode()),
    ]
    for path in bundles:
        found += [
            _get(path.encode()),
            _get(path.encode(), (b"Range", b"bytes=10-99")),
            Request(b"HEAD", path.encode()),
        ]
    return found


def _get(target: bytes, *headers: tuple[bytes, bytes]) -> Request:
    return Request(b"GET", target, list(headers))


def _info_refs(name: str, *headers: tuple[bytes, bytes]) -> Request:
    return _get(f"/{name}/info/refs?service=git-upload-pack".encode(), *headers)


def _upload_pack(
    body: bytes, name: str, *headers: tuple[bytes, bytes], version: int = 0
) -> Request:
    asked = [(b"Git-Protocol", b"version=2")] if version else []
    return Request(
        b"POST",
        f"/{name}.git/git-upload-pack".encode(),
        [(b"Content-Type", UPLOAD), *asked, *headers],
        body,
    )


def _gzipped(request: Request) -> Request:
    request.body = gzip.compress(request.body or b"", mtime=0)
    request.headers.append((b"Content-Encoding", b"gzip"))
    return request


def _push(known: Known, name: str) -> Request:
    line = f"{ZERO_ID} {known.tips[name]} refs/heads/fuzzed\0report-status side-band-64k\n"
    empty_pack = b"PACK" + (2).to_bytes(4, "big") + bytes(4)
    body = encode(line.encode()) + FLUSH_PKT + empty_pack + hashlib.sha1(empty_pack).digest()  # noqa: S324 - a pack's own sum
    return Request(
        b"POST", f"/{name}/git-receive-pack".encode(), [(b"Content-Type", RECEIVE)], body
    )


def _lfs(known: Known) -> Iterator[Request]:
    oid, size = known.lfs
    objects = [{"oid": oid, "size": size}, {"oid": "0" * 64, "size": 7}]
    path = f"/{OPEN}.git/info/lfs"
    for operation in ("download", "upload"):
        document = {"operation": operation, "transfers": ["basic"], "objects": objects}
        yield Request(
            b"POST",
            f"{path}/objects/batch".encode(),
            [(b"Content-Type", LFS_TYPE), (b"Accept", LFS_TYPE)],
            json.dumps(document).encode(),
        )
    at = f"{path}/objects/{oid}".encode()
    yield _get(at)
    yield _get(at, (b"Range", b"bytes=5-"))
    yield _get(at, (b"If-None-Match", b'"%b"' % oid.encode()))
    yield Request(b"PUT", at, [], b"an object")
    yield _get(f"{path}/locks?limit=1".encode())
    yield Request(b"POST", f"{path}/locks/verify".encode(), [(b"Content-Type", LFS_TYPE)], b"{}")


def _webhooks(known: Known) -> Iterator[Request]:
    """Of pushes that change nothing; one at random is signed rightly by who encodes it."""
    change: dict[str, object] = {"ref": "refs/heads/main", "before": ZERO_ID}
    github = {**change, "after": known.tips[OPEN], "repository": {"clone_url": known.urls[OPEN]}}
    gitlab = {**change, "after": known.tips[PRIVATE], "object_kind": "push", "event_name": "push"}
    gitlab["project"] = {"git_http_url": known.urls[PRIVATE]}
    gitea = {**change, "after": known.tips[STRICT], "repository": {"clone_url": known.urls[STRICT]}}
    new = {"type": "branch", "name": "main", "target": {"hash": known.tips[PUSHED]}}
    bitbucket = {
        "repository": {"links": {"html": {"href": known.urls[PUSHED]}}},
        "push": {"changes": [{"old": None, "new": new}]},
    }
    for forge, event, document in (
        ("github", (b"X-GitHub-Event", b"push"), github),
        ("gitlab", (b"X-Gitlab-Event", b"Push Hook"), gitlab),
        ("gitea", (b"X-Gitea-Event", b"push"), gitea),
        ("bitbucket", (b"X-Event-Key", b"repo:push"), bitbucket),
    ):
        yield Request(
            b"POST",
            f"/webhooks/{forge}".encode(),
            [(b"Content-Type", JSON_TYPE), event],
            json.dumps(document).encode(),
            signed_for=forge,
        )
