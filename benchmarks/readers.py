"""Several clients that read the same large answer at once."""

import threading
import time
from collections.abc import Callable

from benchmarks.figures import Side
from benchmarks.http_client import Connection, WrongAnswer
from benchmarks.run import Place


def read_together(
    place: Place, readers: int, bytes_each: int, check_size: Callable[[int, int], None]
) -> Side:
    """Have so many clients read an answer to its end, each on its own connection.

    Raises:
        WrongAnswer: One of them did not get it whole: `check_size` is given the size of what it
            got, and `bytes_each`.
    """
    times: list[float] = []
    sizes: list[int] = []
    start = threading.Barrier(readers + 1)

    def reader() -> None:
        with Connection(place.port) as connection:
            start.wait()
            began_at = time.perf_counter()
            size = connection.drain(place.request)
            times.append((time.perf_counter() - began_at) * 1000)
            sizes.append(size)

    threads = [threading.Thread(target=reader) for _ in range(readers)]
    for thread in threads:
        thread.start()
    start.wait()
    began_at = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began_at
    if len(sizes) != readers:
        raise WrongAnswer(f"{readers - len(sizes)} of {readers} readers had no whole answer")
    for size in sizes:
        check_size(size, bytes_each)
    timed = Side.of_times(times)
    return Side(p50=timed.p50, p99=timed.p99, rate=readers * bytes_each / seconds / 1e6)
