"""The pack engine that lets git do the work: git 2.39 or later.

git runs on our repositories only, with a configuration of its own: no system or user file, no hook,
no credential helper, no lazy fetch, and nothing of a request on its command line but filter-specs
that we wrote ourselves; object ids go through stdin.

What git copies into a pack for a reader it does not check: with `--stdout` not even by the index's
CRC, and commit-graphs, indexes and bitmaps it believes as they are. So the files that it reads are
checked while it works, and the end of the pack is held back until they are found right.
"""

import asyncio
import re
import shutil
import sys
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Final

from mirror.durable import fsync_directory
from mirror.errors import Damaged, LocalError, PackError
from mirror.repository.bare import BareRepository
from mirror.repository.clearing import indexed_packs
from mirror.repository.maintenance import count_to_merge
from mirror.repository.packing.engine import OBJECT_BYTES_MAX, IndexProgress, PackRequest
from mirror.repository.packing.pack_sizes import HEADER_BYTES, object_count
from mirror.repository.packing.spawner import OnStderr, Priority, Spawner
from mirror.repository.quarantine import Quarantine
from mirror.repository.threads import run_to_end
from mirror.wire.names import ObjectId

GIT_VERSION_MIN: Final = (2, 39)
BUILD_SECONDS_MAX: Final = 3600.0
INDEX_SECONDS_MAX: Final = 3600.0
REPACK_SECONDS_MAX: Final = 4 * 3600.0
CHECK_SECONDS_MAX: Final = 60.0
"""A refresh waits meanwhile; what takes longer is tried again another time."""

_OPTIONS: Final = (
    "-c", "safe.directory=*",  # the data directory may belong to another user than ours
    "-c", "core.hooksPath=/dev/null",
    "-c", "gc.auto=0",
    "-c", "maintenance.auto=false",
    "-c", "pack.writeReverseIndex=true",
    "-c", "core.fsync=all,-loose-object",
)  # fmt: skip

_SPARING: Final = ("-c", "pack.threads=1", "-c", "pack.windowMemory=256m")
"""For what nobody waits for: one processor, and so much memory to look for deltas in."""

BITMAPS_FROM_COMMITS: Final = 100
"""Bitmaps tell quickly what a reader lacks that is far behind, or has nothing: up to seven times
quicker. For one that is near they take four times as long, and make packs many times larger."""

OBJECT_IN_PACK_BYTES_MIN: Final = 9
"""A header of a byte and what zlib makes of nothing: the count in a pack's header may lie."""

ENTRY_BYTES_MAX: Final = 256
"""What git's index-pack keeps for each object takes about a third of this."""

UNINDEXED_SHARE: Final = 0.01
"""So much of a repository may be in packs that the bitmap does not know: whoever clones has it
walked, which costs a tenth more for each hundredth. A bitmap takes far longer to write than small
packs do to be merged: docs/decisions/0008."""

_QUICK: Final = ("-c", "pack.window=0", "-c", "pack.compression=1")
"""For a shallow clone: mostly whole files of one commit, where looking for deltas takes more than
half of the time and saves a sixth of the bytes."""

_PROGRESS: Final = re.compile(rb"(?:Receiving|Indexing) objects: [^\r\n]*\((\d+)/(\d+)\)")


class GitEngine:
    """Makes and indexes packs with the git program."""

    name = "git"
    copies_packs = True

    def __init__(self, spawner: Spawner, program: Path, version: str) -> None:
        self._spawner = spawner
        self._program = program
        self.version = version

    @classmethod
    async def find(cls, spawner: Spawner) -> "GitEngine":
        """Look for a git that will do.

        Raises:
            PackError: There is none, or it is too old.
        """
        found = shutil.which("git")
        if found is None:
            raise PackError(
                "there is no git program on the PATH; install git, or set engine: dulwich"
            )
        printed = await spawner.run([found, "version"], env=_environment(), timeout_seconds=10)
        words = printed.decode("ascii", "replace").split()
        version = words[2] if len(words) > 2 else ""
        numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
        if numbers < GIT_VERSION_MIN:
            wanted = ".".join(map(str, GIT_VERSION_MIN))
            raise PackError(f"git {version} is too old; {wanted} or later, or set engine: dulwich")
        return cls(spawner, Path(found), version)

    async def index_pack(
        self, quarantine: Quarantine, *, progress: IndexProgress | None = None
    ) -> None:
        """See `PackEngine.index_pack`."""
        await self._run(
            ["index-pack", "--stdin", "--fix-thin", *(["-v"] if progress else [])],
            env={**_quarantined(quarantine), **await asyncio.to_thread(_bound, quarantine)},
            stdin=quarantine.received,
            timeout_seconds=INDEX_SECONDS_MAX,
            on_stderr=_progress_reader(progress) if progress else None,
        )

    async def check_connected(
        self,
        quarantine: Quarantine,
        tips: Sequence[ObjectId],
        *,
        known: Sequence[ObjectId] = (),
        onto: ObjectId | None = None,
    ) -> bool:
        """See `PackEngine.check_connected`: git asks the refs on disk what is known."""
        del known, onto
        await self._run(
            ["rev-list", "--objects", "--stdin", "--quiet", "--not", "--all"],
            env=_quarantined(quarantine),
            stdin=b"".join(b"%b\n" % tip for tip in tips),
            timeout_seconds=INDEX_SECONDS_MAX,
        )
        return False

    async def build_small(self, repository: BareRepository, request: PackRequest) -> bytes | None:
        """See `PackEngine.build_small`: to start git is no little work."""
        del repository, request
        return None

    async def build_pack(
        self, repository: BareRepository, request: PackRequest
    ) -> AsyncGenerator[bytes, None]:
        """See `PackEngine.build_pack`."""
        arguments = ["pack-objects", "--revs", "--stdout", "-q"]
        if request.thin:
            arguments.append("--thin")
        if request.ofs_delta:
            arguments.append("--delta-base-offset")
        if request.tags:
            arguments.append("--include-tag")
        if request.filter is not None:
            # In one: of several filters, git 2.39 obeys the last.
            arguments.append(f"--filter={request.filter.spec().decode()}")
        options = list(_OPTIONS)
        if request.commits is not None and request.commits < BITMAPS_FROM_COMMITS:
            options += ["-c", "pack.useBitmaps=false"]
        if request.shallow:
            options += ["--shallow-file", ""]  # the boundary comes on stdin instead
            arguments.append("--shallow")
            if not request.haves:
                options[:0] = _QUICK
        lines = [b"--shallow " + oid for oid in sorted(request.shallow)]
        lines += [*request.wants, b"--not", *request.haves, b""]
        child = self._spawner.stream(
            [self._program, *options, *arguments],
            env=_environment(GIT_DIR=str(repository.path)),
            stdin=b"\n".join(lines) + b"\n",
            timeout_seconds=BUILD_SECONDS_MAX,
            priority=Priority.BUILD,
        )
        async with aclosing(_while_sound(repository, child)) as pack:
            async for chunk in pack:
                yield chunk

    async def repack(self, repository: BareRepository) -> None:
        """See `PackEngine.repack`: small packs are merged so that sizes grow geometrically.

        As `git repack --geometric` does, but for the order: that removes the packs it has merged
        before the name of the new one is on the disk for sure.
        """
        await asyncio.to_thread(repository.soundness.demand)  # not to give damage a new checksum
        await asyncio.to_thread(repository.clear_unfinished)
        try:
            merged, others = await asyncio.to_thread(_packs_to_merge, repository)
            old = await self._merge(repository, merged, others) if merged else frozenset()
            try:
                await self.index(repository, without=old)
            finally:  # with an index or without: a full disk needs the room
                await run_to_end(repository.remove_packs, old)
        finally:
            await asyncio.to_thread(repository.clear_unfinished)

    async def _merge(
        self, repository: BareRepository, merged: Sequence[str], others: Sequence[str]
    ) -> frozenset[str]:
        """Write what only `merged` have into one new pack; returns those that may go now."""
        with repository.quarantine() as quarantine:
            packs = quarantine.objects / "pack"
            command = ["pack-objects", "--stdin-packs", "--non-empty", "--delta-base-offset", "-q"]
            await self._run(
                [*command, str(packs / "pack")],
                env=_quarantined(quarantine),
                stdin="".join(
                    [*(f"{one}\n" for one in merged), *(f"^{one}\n" for one in others)]
                ).encode(),
                timeout_seconds=REPACK_SECONDS_MAX,
                is_background=True,
            )
            made = {pack.name for pack in packs.glob("pack-*.pack")}
            await run_to_end(quarantine.migrate)
        return frozenset(merged) - made

    async def index(
        self, repository: BareRepository, *, without: Collection[str] = frozenset()
    ) -> None:
        """See `PackEngine.index`: one bitmap over all large packs, and the commit-graph."""
        env = _environment(GIT_DIR=str(repository.path))
        packs = await asyncio.to_thread(_packs_to_index, repository, without)
        if packs:
            command = ["multi-pack-index", "write", "--bitmap", "--no-progress", "--stdin-packs"]
            if len(packs) > 1:  # all of it is sent as it is; by default, it is the oldest
                command.append(f"--preferred-pack={packs[0]}.pack")
            await self._run(
                command,
                env=env,
                stdin="".join(f"{name}.idx\n" for name in packs).encode(),
                timeout_seconds=REPACK_SECONDS_MAX,
                is_background=True,
            )
        await self._run(
            ["commit-graph", "write", "--reachable", "--no-progress"],
            env=env,
            timeout_seconds=REPACK_SECONDS_MAX,
            is_background=True,
        )
        # Durable before anything goes that these do not need any more.
        for place in ("pack", "info"):
            await asyncio.to_thread(_flush, repository.objects / place)

    async def unreachable_bytes(
        self, repository: BareRepository, tips: Sequence[ObjectId], *, live: Sequence[ObjectId]
    ) -> int:
        """See `PackEngine.unreachable_bytes`."""
        printed = await self._run(
            ["rev-list", "--objects", "--disk-usage", "--stdin"],
            env=_environment(GIT_DIR=str(repository.path)),
            stdin=_revisions(tips, live),
            timeout_seconds=INDEX_SECONDS_MAX,
            is_background=True,
        )
        return int(printed)

    async def pack_reachable(
        self,
        quarantine: Quarantine,
        tips: Sequence[ObjectId],
        *,
        without: Sequence[ObjectId] = (),
    ) -> None:
        """See `PackEngine.pack_reachable`: the deltas that there are, and better ones."""
        base = quarantine.objects / "pack" / "pack"
        await self._run(
            ["pack-objects", "--revs", "--non-empty", "--delta-base-offset", "-q", str(base)],
            env=_quarantined(quarantine),
            stdin=_revisions(tips, without),
            timeout_seconds=REPACK_SECONDS_MAX,
            is_background=True,
        )

    async def check_alone(
        self,
        repository: BareRepository,
        objects: Path,
        tips: Sequence[ObjectId],
        *,
        known: Sequence[ObjectId],
    ) -> None:
        """See `PackEngine.check_alone`: not in the background, for a refresh waits for it."""
        await self._run(
            ["rev-list", "--objects", "--stdin", "--quiet"],
            env=_environment(GIT_DIR=str(repository.path), GIT_OBJECT_DIRECTORY=str(objects)),
            stdin=_revisions(tips, known),
            timeout_seconds=CHECK_SECONDS_MAX,
        )

    async def _run(
        self,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str],
        stdin: bytes | Path = b"",
        timeout_seconds: float,
        on_stderr: OnStderr | None = None,
        is_background: bool = False,
    ) -> bytes:
        options = _OPTIONS + _SPARING if is_background else _OPTIONS
        return await self._spawner.run(
            [self._program, *options, *arguments],
            env=env,
            stdin=stdin,
            timeout_seconds=timeout_seconds,
            on_stderr=on_stderr,
            priority=Priority.BACKGROUND if is_background else Priority.USUAL,
        )


async def _while_sound(
    repository: BareRepository, child: AsyncGenerator[bytes, None]
) -> AsyncGenerator[bytes, None]:
    """Pass on what git makes, one piece late: the last only once what it read was found right.

    Raises:
        Damaged: Something is not.
        PackError: git failed, for another reason.
    """
    checking = asyncio.create_task(asyncio.to_thread(repository.soundness.demand))
    # The thread goes on to its end, and what it finds is kept for the next.
    checking.add_done_callback(_seen)
    held = b""
    try:
        async with aclosing(child):
            async for chunk in child:
                if checking.done():
                    checking.result()
                if held:
                    yield held
                held = chunk
    except Damaged:
        raise
    except PackError:
        await asyncio.shield(checking)  # if that is why, it is the better reason
        raise
    await asyncio.shield(checking)
    yield held


def _seen(checking: "asyncio.Task[None]") -> None:
    if not checking.cancelled():
        checking.exception()


def _packs_to_merge(repository: BareRepository) -> tuple[list[str], list[str]]:
    """Return the packs that are to become one, and the others."""
    packs: list[tuple[int, str]] = []
    for each in repository.pack_files():
        with each.open("rb") as file:
            packs.append((object_count(file.read(HEADER_BYTES)), each.name))
    packs.sort()
    count = count_to_merge([objects for objects, _ in packs], objects_max=sys.maxsize)
    names = [name for _, name in packs]
    return names[:count], names[count:]


def _packs_to_index(repository: BareRepository, without: Collection[str]) -> list[str]:
    """Return the packs that are to have a new bitmap, the largest first; none if one is good."""
    packs = [each for each in repository.pack_files() if each.name not in without]
    sizes = {each.stem: each.stat().st_size for each in packs}
    rest_max = UNINDEXED_SHARE * sum(sizes.values())
    indexed = {
        Path(name).stem for name in indexed_packs(repository.objects / "pack" / "multi-pack-index")
    }
    if indexed and indexed <= sizes.keys():
        rest = sum(size for name, size in sizes.items() if name not in indexed)
        if rest <= rest_max:
            return []
    chosen: list[str] = []
    rest = sum(sizes.values())
    for name in sorted(sizes, key=lambda name: sizes[name], reverse=True):
        if chosen and rest <= rest_max:
            break
        chosen.append(name)
        rest -= sizes[name]
    return chosen


def _flush(place: Path) -> None:
    try:
        fsync_directory(place)
    except FileNotFoundError:
        pass  # nothing was written there
    except OSError as error:
        raise LocalError(f"can't flush {place}: {error.strerror}") from error


def _revisions(wants: Sequence[ObjectId], haves: Sequence[ObjectId]) -> bytes:
    return b"".join([*(b"%b\n" % oid for oid in wants), *(b"^%b\n" % oid for oid in haves)])


def _environment(**more: str) -> dict[str, str]:
    """The child's whole environment: nothing of ours reaches it."""
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": "/nonexistent",
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": "",  # none: whatever a repository says, git asks nobody for anything
        **more,
    }


def _quarantined(quarantine: Quarantine) -> dict[str, str]:
    """New objects go to the quarantine; those of the repository are found by its alternates."""
    return _environment(
        GIT_DIR=str(quarantine.repository.path), GIT_OBJECT_DIRECTORY=str(quarantine.objects)
    )


def _bound(quarantine: Quarantine) -> dict[str, str]:
    """Return what bounds git's allocations, each by itself: for one object, or of one for each.

    git streams larger files when they are no deltas, as they are not where git packed them.
    """
    try:
        size = quarantine.received.stat().st_size
        with quarantine.received.open("rb") as file:
            count = object_count(file.read(HEADER_BYTES))
    except OSError as error:
        raise PackError(f"what was received can't be read: {error.strerror}") from error
    objects = min(count, size // OBJECT_IN_PACK_BYTES_MIN)
    return {"GIT_ALLOC_LIMIT": str(OBJECT_BYTES_MAX + objects * ENTRY_BYTES_MAX)}


def _progress_reader(progress: IndexProgress) -> OnStderr:
    def read(data: bytes) -> None:
        if counts := _PROGRESS.findall(data):
            done, total = counts[-1]
            progress(int(done), int(total))

    return read
