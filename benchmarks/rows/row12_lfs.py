"""Row 12: an LFS object that is here, to several clients at once, beside nginx with the same file.

The object and the mirror's right to hand it out are put in place beforehand, as a download from the
upstream would have done: what is measured is what readers get. They let the kernel discard it.
"""

import hashlib
from collections.abc import Iterator

from benchmarks.figures import Measurement, Side, memory_on_top
from benchmarks.http_client import Request, WrongAnswer, ask_once
from benchmarks.readers import read_together
from benchmarks.run import Place, Run
from benchmarks.service import Service
from mirror.repository.lfs_store import LfsStore
from mirror.wire.lfs import Pointer

NUMBER = 12
NEEDS = ("git", "nginx", "fcgiwrap")
READERS = 8
ROUNDS = 3
OBJECT_BYTES = 100 * 1000 * 1000


def measure(run: Run) -> Iterator[Measurement]:
    """One object of 100 MB to 8 clients."""
    repository = run.repositories.gitops()
    content = hashlib.shake_128(b"row 12").digest(OBJECT_BYTES)
    with run.service(repository) as service:
        request = _stored(service, repository.name, run.peer.url(repository.name), content)
        static = run.peer.static("lfs-object", content)
        places = [Place(service.port, request), Place(run.peer.port, static)]
        for place in places:
            if ask_once(place.port, place.request) != content:
                raise WrongAnswer("an answer is not the object")
        before = service.memory_mb()
        service.forget_peak()
        sides: list[list[Side]] = [[], []]
        for _ in range(ROUNDS):
            for place, taken in zip(places, sides, strict=True):
                taken.append(read_together(place, READERS, OBJECT_BYTES, _check_size))
        peak = service.memory_mb("VmHWM")
    yield Measurement(
        NUMBER,
        f"LFS object of 100 MB that is here, {READERS} clients at once",
        Side.of_rounds(sides[0]),
        "nginx static",
        Side.of_rounds(sides[1]),
        judged="rate",
        unit="MB/s",
        checked=f"{OBJECT_BYTES:,} bytes, equal",
    )
    yield memory_on_top(NUMBER, before, peak)


def _check_size(size: int, expected: int) -> None:
    if size != expected:
        raise WrongAnswer(f"an answer has {size:,} bytes, the object {expected:,}")


def _stored(service: Service, name: str, upstream: str, content: bytes) -> Request:
    """Put an object into the mirror's store, granted; returns the request for it."""
    store = LfsStore(service.data / "lfs", bytes_max=2 * OBJECT_BYTES)
    pointer = Pointer(hashlib.sha256(content).hexdigest(), len(content))
    store.grant(store.scope(name, upstream), pointer)
    part = store.new_part(pointer)
    try:
        part.write(content)
        part.publish()
    finally:
        part.abandon()
    return Request(f"/{name}.git/info/lfs/objects/{pointer.oid}")
