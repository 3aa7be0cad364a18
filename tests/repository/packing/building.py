"""Small steps that the tests of the engines share."""

from collections.abc import Iterable

from mirror.repository.bare import BareRepository
from mirror.repository.packing.auto_engine import AutoEngine
from mirror.repository.packing.engine import PackEngine, PackRequest
from mirror.wire.names import ObjectId
from tests.repository.histories import Scratch


async def build(engine: PackEngine, repository: BareRepository, request: PackRequest) -> bytes:
    """Return the whole pack; from `engine: auto` as the cache asks for it, at once if it can be."""
    if isinstance(engine, AutoEngine):
        small = await engine.build_small(repository, request)
        if small is not None:
            return small
    return b"".join([chunk async for chunk in engine.build_pack(repository, request)])


async def receive(engine: PackEngine, repository: BareRepository, pack: bytes) -> None:
    """Take a pack in, as a refresh does; what it holds is not checked for being complete."""
    with repository.quarantine() as quarantine:
        quarantine.received.write_bytes(pack)
        await engine.index_pack(quarantine)
        quarantine.migrate()


def pack_of(scratch: Scratch, oids: Iterable[ObjectId]) -> bytes:
    """Let git make a pack of exactly these objects."""
    given = b"".join(b"%b\n" % oid for oid in oids)
    return scratch.git("pack-objects", "-q", "--stdout", stdin=given)
