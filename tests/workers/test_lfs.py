"""What a worker wants of LFS: it gets what the main process got, the errors too."""

import asyncio
from collections.abc import Sequence
from typing import cast

import pytest

from mirror.errors import (
    LocalError,
    MirrorError,
    Overloaded,
    PackError,
    UpstreamRefused,
    UpstreamUnavailable,
)
from mirror.repository.lfs_store import StoreFull
from mirror.upstream.lfs import ActionRefused
from mirror.wire.lfs import Pointer, Refusal
from mirror.workers.frames import Decoder, encode
from mirror.workers.lfs import LfsProxy, lfs_answer
from mirror.workers.link import Link
from mirror.workers.messages import Envelope, LfsAsked, LfsFetched, Message, Reply

ONE, TWO = Pointer("a" * 64, 1), Pointer("b" * 64, 2)


class Source:
    """Has one object, or fails."""

    error: MirrorError | None = None

    async def ask(self, name: str, pointers: Sequence[Pointer]) -> dict[str, Refusal | None]:
        assert name == "acme/app"
        self._fail()
        return {one.oid: None if one == ONE else Refusal(404, "none") for one in pointers}

    async def fetch(self, name: str, pointer: Pointer) -> None:
        assert (name, pointer) == ("acme/app", ONE)
        self._fail()

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error


class Channel:
    """Carries a question to `Source` and its answer back, as bytes."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def ask(self, message: Message) -> "asyncio.Future[Reply]":
        return asyncio.create_task(self._ask(message))

    async def _ask(self, message: Message) -> Reply:
        (told,) = Decoder().feed(encode(Envelope(1, message)))
        assert isinstance(told.message, LfsAsked | LfsFetched)
        return Reply((await lfs_answer(self._source, told.message)).decode())


async def test_a_worker_is_told_what_is_granted_and_what_is_not() -> None:
    proxy = LfsProxy(cast("Link", Channel(Source())))
    assert await proxy.ask("acme/app", [ONE, TWO]) == {ONE.oid: None, TWO.oid: Refusal(404, "none")}
    await proxy.fetch("acme/app", ONE)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (UpstreamUnavailable, UpstreamUnavailable),
        (UpstreamRefused, UpstreamRefused),
        (ActionRefused, UpstreamRefused),
        (Overloaded, Overloaded),
        (StoreFull, StoreFull),
        (PackError, LocalError),
    ],
)
async def test_an_error_keeps_its_kind_and_its_sentence_on_the_way_to_a_worker(
    raised: type[MirrorError], expected: type[MirrorError]
) -> None:
    source = Source()
    source.error = raised("what to do")
    proxy = LfsProxy(cast("Link", Channel(source)))
    for asking in (proxy.ask("acme/app", [ONE]), proxy.fetch("acme/app", ONE)):
        with pytest.raises(expected, match="what to do") as caught:
            await asking
        assert caught.value.status == expected.status
