"""How slowly an upstream may send. Pure: the time is passed in.

Silence is noticed by the line itself; a byte a second is no silence, but keeps one of the places
for refreshes for hours. Only the time spent waiting for the upstream counts, not what we do
meanwhile.
"""

from mirror.errors import Trouble, UpstreamUnavailable


class Pace:
    """The pace of one answer's body.

    Attributes:
        counts: Whether it does: before a pack, little comes for long, while the upstream counts.
    """

    def __init__(
        self, *, bytes_per_second_min: int, window_seconds: float, counts: bool = True
    ) -> None:
        self.counts = counts
        self._least = bytes_per_second_min
        self._window_seconds = window_seconds
        self._waited_seconds = 0.0
        self._size = 0

    def took(self, seconds: float, size: int) -> None:
        """Take note of `size` bytes that were waited for `seconds`.

        Raises:
            UpstreamUnavailable: Over a whole window, too few have come.
        """
        if not self.counts:
            return
        self._waited_seconds += seconds
        self._size += size
        if self._waited_seconds < self._window_seconds:
            return
        if self._size < self._least * self._waited_seconds:
            raise UpstreamUnavailable(
                f"the upstream sent {self._size} bytes in {self._waited_seconds:.0f} seconds, less"
                f" than {self._least} bytes per second (limits.upstream_bytes_per_second_min)",
                trouble=Trouble.SLOW,
            )
        self._waited_seconds, self._size = 0.0, 0
