"""The forge's word on a client's own credentials: may they read this repository there?

Asked once for each header and repository, however many clients come with it; a good word holds for
a stated time, and longer while the forge can't be asked. A bad word holds for seconds: a permission
that was just given is to work. Only digests of what was shown are kept.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import structlog
from yarl import URL

from mirror.errors import MirrorError, Overloaded, UpstreamUnavailable
from mirror.upstream.line import Line

REFUSED_SECONDS: Final = 5.0
RETRY_SECONDS: Final = 5.0
"""Between two questions to a forge that does not answer."""

ANSWER_SECONDS_MAX: Final = 10.0
WORDS_MAX: Final = 10_000
"""Of headers and repositories; those used least recently are asked for again."""

ASKED_AT_ONCE_MAX: Final = 32

_SERVICE: Final = "git-upload-pack"

logger = structlog.stdlib.get_logger()

Key = tuple[bytes, str]


@dataclass(slots=True)
class _Word:
    """What the forge said, and when; `ask_at` is when to ask again."""

    is_good: bool
    said_at: float
    ask_at: float


class ForgeAccess:
    """Asks forges about clients' credentials."""

    def __init__(
        self,
        line_to: Callable[[str], Line],
        *,
        valid_seconds: float,
        outage_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with no words.

        Args:
            line_to: Leads to the upstream of the repository with that name.
            valid_seconds: How long a good word holds.
            outage_seconds: How much longer while the forge can't be asked.
            clock: Monotonic.
        """
        self._line_to = line_to
        self._valid_seconds = valid_seconds
        self._outage_seconds = outage_seconds
        self._clock = clock
        self._words: OrderedDict[Key, _Word] = OrderedDict()
        self._asking: dict[Key, asyncio.Task[bool]] = {}

    def take_over(self, before: "ForgeAccess", *, is_same: Callable[[str], bool]) -> None:
        """Go on with the words that another one has, where they are about the same upstream.

        How long they hold is as here: a shorter time counts for them, too.
        """
        for key, word in before._words.items():  # noqa: SLF001 - of the same class
            if is_same(key[1]):
                until = word.said_at + self._valid_seconds if word.is_good else word.ask_at
                self._words[key] = replace(word, ask_at=min(word.ask_at, until))

    async def close(self) -> None:
        """End what is under way."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def known(self, digest: bytes, repository: str) -> bool | None:
        """Return the forge's word as far as it holds; `None` where it has to be asked."""
        word = self._words.get((digest, repository))
        if word is None or self._clock() >= word.ask_at:
            return None
        self._words.move_to_end((digest, repository))
        return word.is_good

    async def allows(self, header: str, digest: bytes, repository: str, upstream: str) -> bool:
        """Tell whether the forge lets this Authorization header read.

        Raises:
            UpstreamUnavailable: It can't be asked, and has not said so lately.
            Overloaded: Too many are being asked about.
        """
        known = self.known(digest, repository)
        if known is not None:
            return known
        key = (digest, repository)
        asking = self._asking.get(key)
        if asking is None:
            if len(self._asking) >= ASKED_AT_ONCE_MAX:
                raise Overloaded("too many new credentials are being checked; try again soon")
            asking = asyncio.create_task(self._ask(header, key, URL(upstream)))
            self._asking[key] = asking
            asking.add_done_callback(lambda _: self._asking.pop(key, None))
        await asyncio.wait((asking,))  # who leaves cancels nothing
        return asking.result()

    async def _ask(self, header: str, key: Key, upstream: URL) -> bool:
        now = self._clock()
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                is_good = await self._look(self._line_to(key[1]), header, upstream)
        except (MirrorError, TimeoutError) as error:
            word = self._words.get(key)
            if (
                word is None
                or not word.is_good
                or now - word.said_at > self._valid_seconds + self._outage_seconds
            ):
                raise UpstreamUnavailable(
                    f"{upstream.host} can't be asked about these credentials: {error}"
                ) from error
            word.ask_at = now + RETRY_SECONDS
            logger.warning("access_by_an_old_word", repository=key[1], error=str(error))
            return True
        holds = self._valid_seconds if is_good else REFUSED_SECONDS
        self._words[key] = _Word(is_good, now, now + holds)
        self._words.move_to_end(key)
        if len(self._words) > WORDS_MAX:
            self._words.popitem(last=False)
        return is_good

    async def _look(self, line: Line, header: str, upstream: URL) -> bool:
        """Ask for the repository's refs, as git does.

        Raises:
            UpstreamError: There is no answer that says yes or no.
        """
        url = upstream / "info/refs" % {"service": _SERVICE}
        headers = {"Authorization": header, "Git-Protocol": "version=2", "User-Agent": "git/2"}
        async with line.requested(
            "GET", url, headers=headers, silence_seconds_max=ANSWER_SECONDS_MAX
        ) as answer:
            if answer.status == 200:
                return True
            if answer.status in (401, 403, 404) and "Retry-After" not in answer.headers:
                return False
            raise UpstreamUnavailable(f"it answered {answer.status}")
