"""Many refs, long negotiations, many clients at once, and clients in the middle of a storm."""

import asyncio
import random
from pathlib import Path

from tests.e2e.comparing import assert_same_repository
from tests.git_client import GitClient, Upstream
from tests.mirror_service import MirrorService

BRANCHES = 3000
WANTS_BYTES = BRANCHES * len("0032want \n" + "0" * 40)


async def test_3000_branches_are_wanted_in_one_chunked_request_after_a_probe(
    mirror: MirrorService, upstream: Upstream, through: str, tmp_path: Path, version: int
) -> None:
    # git lets http.postBuffer be no smaller than 64 KB.
    client = GitClient(tmp_path / "client", version, config={"http.postBuffer": "65536"})
    assert WANTS_BYTES > 2 * 65536
    tips = upstream.history(BRANCHES)
    upstream.branches({f"team-{n % 17}/branch-{n}": tip for n, tip in enumerate(tips)})
    await mirror.announce(upstream)
    await mirror.caught_up(upstream)
    clone = await client.clone(through, "--mirror")
    assert await client.refs(clone) == upstream.refs()
    assert await mirror.metric("git_mirror_request_seconds_count", operation="probe", outcome="ok")
    await client.fsck(clone)


async def loose_objects(client: GitClient, clone: Path) -> int:
    """Count the objects that came in small packs: git unpacks these."""
    return int((await client.output("count-objects", cwd=clone)).split()[0])


def own_commits(branch: str, count: int, *, onto: str | None = None) -> str:
    """Return commits of the client's own, as `git fast-import` takes them."""
    return "".join(
        f"commit refs/heads/{branch}\n"
        f"committer Me <me@example.com> {1_800_000_000 + number} +0000\n"
        f"data 1\nm\n{f'from {onto}' if onto and number == 0 else ''}\n"
        for number in range(count)
    )


async def test_a_client_with_500_commits_of_its_own_gets_only_what_is_new(
    mirror: MirrorService, upstream: Upstream, client: GitClient, through: str, direct: str
) -> None:
    upstream.history(40)
    await mirror.announce(upstream)
    clone = await client.clone(through)
    await client.run("checkout", "--quiet", "-b", "local", cwd=clone)
    own = own_commits("local", 500, onto="refs/heads/local^0")
    await client.run("fast-import", "--quiet", cwd=clone, stdin=own)
    commit = upstream.commit(files={"base/new.yaml": "new: 1\n"})
    await mirror.announce(upstream)
    before = await loose_objects(client, clone)
    done = await client.fetch(clone, "--verbose", "origin")
    assert await client.rev_parse(clone, "origin/main") == commit, done
    assert await loose_objects(client, clone) - before == 4  # a commit, two trees and a blob
    await client.fsck(clone)


async def test_a_client_with_nothing_in_common_gets_everything(
    mirror: MirrorService, upstream: Upstream, client: GitClient, through: str
) -> None:
    own = client.workdir / "own"
    await client.run("init", "--quiet", str(own))
    await client.run("fast-import", "--quiet", cwd=own, stdin=own_commits("main", 40))
    await client.fetch(own, through, "refs/heads/*:refs/remotes/mirror/*")
    assert await client.rev_parse(own, "mirror/main") == upstream.oid()
    await client.fsck(own)


async def test_20_clients_at_once_are_all_served(
    mirror: MirrorService, upstream: Upstream, client: GitClient, through: str, direct: str
) -> None:
    upstream.history(100)
    upstream.tag("v1")
    await mirror.announce(upstream)
    clones = await asyncio.gather(*(client.clone(through, "--mirror") for _ in range(20)))
    expected = upstream.refs()
    assert [await client.refs(clone) for clone in clones] == [expected] * 20
    await client.fsck(clones[-1])


class Pusher:
    """Changes an upstream at random, and knows where each of its refs has been."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._chance = random.Random(8)
        self._was_at: dict[str, list[str]] = {}
        upstream.history(2)
        self.change(0)

    def change(self, number: int) -> None:
        match self._chance.randrange(4):
            case 0:
                self._upstream.commit(parents=["main~1"])
            case 1:
                self._upstream.commit(f"branch-{number}", parents=["main"])
            case 2:
                self._upstream.tag(f"v{number % 3}")
            case _:
                self._upstream.commit(files={f"overlays/{number}.yaml": "a: 1\n" * number})
        for ref, oid in self._upstream.refs().items():
            self._was_at.setdefault(ref, []).append(oid)

    def assert_followed(self, seen: list[dict[str, str]]) -> None:
        """Assert that each of these states was the upstream's, ref by ref, in the same order."""
        for ref in seen[-1]:
            at = [self._was_at[ref].index(refs[ref]) for refs in seen if ref in refs]
            assert at == sorted(at)


async def test_clones_in_the_middle_of_pushes_get_commits_that_the_upstream_had(
    mirror: MirrorService, upstream: Upstream, client: GitClient, through: str
) -> None:
    pusher = Pusher(upstream)
    await mirror.announce(upstream)
    is_over = asyncio.Event()

    async def push() -> None:
        for number in range(25):
            before = upstream.oid()
            await asyncio.to_thread(pusher.change, number)
            await mirror.announce(upstream, before=before)
        is_over.set()

    async def follow(*, afresh: bool) -> None:
        clone = await client.clone(through, "--mirror")
        seen = [await client.refs(clone)]
        while not is_over.is_set():
            if afresh:
                clone = await client.clone(through, "--mirror")
            else:
                await client.fetch(clone, "--prune", "--force")
            seen.append(await client.refs(clone))
        await client.fsck(clone)
        pusher.assert_followed(seen)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(push())
        for number in range(4):
            tasks.create_task(follow(afresh=bool(number % 2)))
    last = await client.clone(through, "--mirror")
    same = await client.clone(upstream.path.as_uri(), "--mirror")
    await assert_same_repository(client, last, same)
