"""Row 12: an LFS object that is here, to several clients at once, beside nginx with the same file.

The object and the mirror's right to hand it out are put in place beforehand, as a download from the
upstream would have done: what is measured is what readers get. They let the kernel discard it.
"""

import hashlib
import threading
import time
from collections.abc import Iterator

from benchmarks.figures import Measurement, Side
from benchmarks.http_client import Connection, Request, WrongAnswer, ask_once
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
                taken.append(_read_together(place))
        growth = service.memory_mb("VmHWM") - before
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
    yield Measurement(
        NUMBER,
        f"memory on top of {before:.0f} MB meanwhile, at its peak",
        Side(amount=max(0.0, growth)),
        judged="amount",
        unit="MB",
    )


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


def _read_together(place: Place) -> Side:
    times: list[float] = []
    start = threading.Barrier(READERS + 1)

    def reader() -> None:
        with Connection(place.port) as connection:
            start.wait()
            began_at = time.perf_counter()
            if connection.drain(place.request) == OBJECT_BYTES:
                times.append((time.perf_counter() - began_at) * 1000)

    threads = [threading.Thread(target=reader) for _ in range(READERS)]
    for thread in threads:
        thread.start()
    start.wait()
    began_at = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began_at
    if len(times) != READERS:
        raise WrongAnswer(f"{READERS - len(times)} of {READERS} readers had no whole object")
    timed = Side.of_times(times)
    return Side(p50=timed.p50, p99=timed.p99, rate=READERS * OBJECT_BYTES / seconds / 1e6)
