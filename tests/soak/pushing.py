"""Who changes the upstream, and the forge's webhooks: lost, doubled, late, shuffled, badly signed.

What a ref will be is in its history before anybody can see it there; what did not come about after
all is taken back, and then can't come about any more.
"""

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import aiohttp

from tests.e2e.day.pushing import Webhook
from tests.git_client import GitClient, GitFailed
from tests.mirror_service import ZERO_ID, github_headers, github_push
from tests.soak.asking import GONE, Asking
from tests.soak.estate import TOKEN, USER, Estate, Repository
from tests.soak.judges import MAIN
from tests.soak.ledger import Trouble

BRANCHES: Final = tuple(f"refs/heads/b{number}" for number in range(6))
TAGS: Final = tuple(f"refs/tags/v{number}" for number in range(6))
THROUGH: Final = "refs/heads/through-the-mirror"
NEXT: Final = "refs/soak/next"
"""Where a commit is made, out of sight."""

PUSH_SECONDS_MAX: Final = 45.0
PUSHES_EACH: Final = 25
"""The clone that pushes is made anew after so many."""

LOST, DOUBLED, LATE, BAD = 0.2, 0.2, 0.3, 0.1
"""The shares of webhooks."""

SHELF_MAX: Final = 200


class Webhooks:
    """The forge's.

    Attributes:
        is_held: Whether those that are late stay so.
    """

    def __init__(self, estate: Estate, asking: Asking) -> None:
        self._estate = estate
        self._asking = asking
        self._shelf: list[Webhook] = []
        self._sent: list[Webhook] = []
        self.is_held = False

    def of(self, one: Repository, ref: str, before: str) -> Webhook:
        """Return what the forge says of what a ref has become."""
        history = one.watch.history
        body = github_push(self._estate.upstream_url(one), ref, before, history.tip(ref))
        number = len(history.refs[ref]) - 1
        return Webhook(ref, number, body, github_headers(body))

    async def put(self, one: Repository, webhook: Webhook) -> None:
        """Deliver one, perhaps: or lose it, or put it by for later."""
        chance, counts = self._estate.chance, self._estate.ledger.webhooks
        if chance.random() < BAD:
            await self._deliver_badly(webhook)
        if chance.random() < LOST:
            counts["lost on the way"] += 1
            return
        if chance.random() < LATE:
            counts["late"] += 1
            self._shelf.append(webhook)
            del self._shelf[:-SHELF_MAX]
        else:
            await self.deliver(one, webhook)
        if chance.random() < DOUBLED:
            counts["doubled"] += 1
            await self.deliver(one, webhook)
        if self._shelf and chance.random() < 0.3:
            await self.flush()

    async def flush(self) -> None:
        """Deliver what is late, in any order, and some of it for the second time."""
        if self.is_held:
            return
        shelf, self._shelf = self._shelf, []
        self._estate.chance.shuffle(shelf)
        for webhook in [*shelf, *self._sent[-3:]]:
            await self.deliver(None, webhook)

    async def deliver(self, one: Repository | None, webhook: Webhook) -> None:
        """Deliver one; once it is accepted, no reader is to see what was before it as fresh.

        Args:
            one: Whose it is; `None` for those that came before or are late.
            webhook: It.
        """
        estate, began = self._estate, time.monotonic()
        counts = estate.ledger.webhooks
        try:
            answer = await self._asking.ask(
                "POST",
                f"{estate.mirror.url}/webhooks/github",
                body=webhook.body,
                headers=webhook.headers,
            )
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            counts["not taken"] += 1
            if not estate.conditions.explain(began, *GONE):
                estate.ledger.violate("webhook", f"not taken: {type(error).__name__}: {error}")
            return
        if answer.status not in {200, 202}:
            counts["refused"] += 1
            if answer.status != 503 or not estate.conditions.explain(began, *GONE):
                estate.ledger.violate("webhook", f"answered {answer.status}: {answer.body[:500]!r}")
            return
        counts["accepted"] += 1
        estate.ledger.took("webhook", time.monotonic() - began)
        if one is not None:
            if answer.status == 202:
                one.watch.raise_floor(webhook.ref, webhook.number)
            self._sent.append(webhook)
            del self._sent[:-SHELF_MAX]

    async def _deliver_badly(self, webhook: Webhook) -> None:
        estate, began = self._estate, time.monotonic()
        headers = {**webhook.headers, "X-Hub-Signature-256": "sha256=" + "0" * 64}
        if estate.chance.random() < 0.3:
            del headers["X-Hub-Signature-256"]
        estate.ledger.webhooks["badly signed"] += 1
        try:
            answer = await self._asking.ask(
                "POST", f"{estate.mirror.url}/webhooks/github", body=webhook.body, headers=headers
            )
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            if not estate.conditions.explain(began, *GONE):
                estate.ledger.violate("webhook", f"badly signed: {type(error).__name__}: {error}")
            return
        if answer.status not in {401, 429} and not estate.conditions.explain(began, *GONE):
            estate.ledger.violate("webhook", f"badly signed, and answered {answer.status}")


class Pusher:
    """Changes the repositories at the upstream."""

    def __init__(self, estate: Estate, asking: Asking, webhooks: Webhooks) -> None:
        self.webhooks = webhooks
        self._estate = estate
        self._asking = asking
        self._version = 0
        self._pushes = 0
        self._git: GitClient | None = None

    async def push(self, one: Repository) -> None:
        """Change something, at the forge."""
        ways: list[tuple[str, int, Callable[[Repository], Awaitable[None]]]] = [
            ("commit", 10, self.commit),
            ("branch", 5, self._branch),
            ("branch deleted", 2, self._delete_branch),
            ("merge", 2, self._merge),
            ("tag", 3, self._tag),
            ("tag deleted", 1, self._delete_tag),
            ("force-push", 2, self.force),
        ]
        kinds, weights, works = zip(*ways, strict=True)
        (number,) = self._estate.chance.choices(range(len(works)), weights)
        async with one.pushing:
            await works[number](one)
        self._estate.ledger.pushes[kinds[number]] += 1

    async def announce_for_sure(self, one: Repository) -> None:
        """Commit once more to main, with a webhook that is delivered."""
        async with one.pushing:
            before = one.watch.history.tip(MAIN)
            await self._update(one, MAIN, await self._made(one, [MAIN]))
            await self.webhooks.deliver(one, self.webhooks.of(one, MAIN, before))

    async def commit_unseen(self, one: Repository) -> None:
        """Commit once more to main, and no webhook says so."""
        async with one.pushing:
            await self._update(one, MAIN, await self._made(one, [MAIN]))

    async def commit(self, one: Repository) -> None:
        await self._push(one, MAIN, await self._made(one, [MAIN]))

    async def force(self, one: Repository) -> None:
        """Take back the last commits of main and push another in their place."""
        history = one.watch.history.refs[MAIN]
        await self._push(one, MAIN, await self._made(one, [history[max(1, len(history) - 4)]]))

    async def many(self, one: Repository) -> None:
        """Make many branches at once, and delete them again: no forge sends webhooks for those."""
        oid, history = one.watch.history.tip(MAIN), one.watch.history
        names = [f"refs/heads/many/{number}" for number in range(60)]
        async with one.pushing:
            for name in names:
                history.record(name, oid)
            await asyncio.to_thread(one.upstream.branches, dict.fromkeys(names, oid))
            await asyncio.sleep(1)
            for name in names:
                history.record(name, ZERO_ID)
            lines = "".join(f"delete {name}\n" for name in names)
            await asyncio.to_thread(one.upstream.git, "update-ref", "--stdin", stdin=lines)
        self._estate.ledger.pushes["many refs"] += 1

    async def _branch(self, one: Repository) -> None:
        ref = self._estate.chance.choice(BRANCHES)
        tips = one.watch.history.tips()
        await self._push(one, ref, await self._made(one, [ref if ref in tips else MAIN]))

    async def _merge(self, one: Repository) -> None:
        branches = [ref for ref in BRANCHES if ref in one.watch.history.tips()]
        parents = [MAIN, *self._estate.chance.sample(branches, min(1, len(branches)))]
        await self._push(one, MAIN, await self._made(one, parents))

    async def _tag(self, one: Repository) -> None:
        ref, target = self._estate.chance.choice(TAGS), one.watch.history.tip(MAIN)
        self._version += 1
        body = (
            f"object {target}\ntype commit\ntag {ref.rpartition('/')[2]}\n"
            f"tagger Test <test@example.com> {1_750_000_000 + self._version} +0000\n\nRelease\n"
        )
        oid = await asyncio.to_thread(one.upstream.git, "mktag", stdin=body)
        await self._push(one, ref, oid)

    async def _delete_branch(self, one: Repository) -> None:
        await self._delete(one, BRANCHES)

    async def _delete_tag(self, one: Repository) -> None:
        await self._delete(one, TAGS)

    async def _delete(self, one: Repository, among: tuple[str, ...]) -> None:
        there = [ref for ref in among if ref in one.watch.history.tips()]
        if there:
            await self._push(one, self._estate.chance.choice(there), ZERO_ID)

    async def _made(self, one: Repository, parents: list[str]) -> str:
        """Make a commit that no ref shows."""
        self._version += 1
        number = self._estate.chance.randrange(20)
        files = {f"apps/{number}/values.yaml": f"image: web\ntag: 2.{self._version}\n"}
        return await asyncio.to_thread(
            one.upstream.commit, NEXT, files, message="Bump", parents=parents
        )

    async def _push(self, one: Repository, ref: str, oid: str) -> None:
        before = await self._update(one, ref, oid)
        await self.webhooks.put(one, self.webhooks.of(one, ref, before))

    async def _update(self, one: Repository, ref: str, oid: str) -> str:
        """Have a ref be that; returns what it was."""
        history = one.watch.history
        before = history.tip(ref) if ref in history.refs else ZERO_ID
        history.record(ref, oid)
        command = ("update-ref", "-d", ref) if oid == ZERO_ID else ("update-ref", ref, oid)
        await asyncio.to_thread(one.upstream.git, *command)
        return before

    # --- through the mirror --------------------------------------------------------------------

    async def push_through(self, one: Repository) -> None:
        """Push through the mirror, as the forge's user."""
        if self._git is None:
            self._git = self._estate.git("pusher")
        git, began, history = self._git, time.monotonic(), one.watch.history
        clone = git.workdir / one.name.replace("/", "-")
        explain = self._estate.conditions.explain
        # From the forge's tip, not from the mirror's: it may be behind.
        tip = history.refs.get(THROUGH, [ZERO_ID])[-1]
        start = history.tip(MAIN) if tip == ZERO_ID else tip
        try:
            oid = await self._prepared(git, one, clone, start)
        except GitFailed as error:
            if "not our ref" in str(error) and start not in one.watch.history.tips().values():
                self._estate.ledger.pushes["through the mirror, not begun"] += 1  # it has just gone
            elif not (
                explain(began, *GONE, Trouble.UPSTREAM, Trouble.DISK)
                or explain(began, Trouble.DAMAGE, of=one.name)
            ):
                self._estate.ledger.violate(one.name, f"before a push: {error}")
            shutil.rmtree(clone, ignore_errors=True)
            return
        before = history.tip(THROUGH) if THROUGH in history.refs else ZERO_ID
        number = history.record(THROUGH, oid)
        trouble = None
        try:
            await git.run(
                *("push", "--quiet", "origin", f"HEAD:{THROUGH}"),
                cwd=clone,
                timeout=PUSH_SECONDS_MAX,
            )
        except GitFailed as error:
            trouble = error
        if trouble is None:
            self._estate.ledger.pushes["through the mirror"] += 1
            # A hand-over holds a push up, but for eight seconds at most.
            if not explain(began, Trouble.MACHINE):
                one.watch.raise_floor(THROUGH, number)
            return
        if not explain(began, *GONE, Trouble.UPSTREAM):
            self._estate.ledger.violate(one.name, f"push: {trouble}")
        await self._settle(one, before)

    async def _prepared(self, git: GitClient, one: Repository, clone: Path, start: str) -> str:
        """Make a commit on one that the mirror has; returns it."""
        self._pushes += 1
        if not clone.exists():
            await git.run("clone", "--quiet", self._estate.url(one), str(clone))
            url = self._estate.url(one).replace("://", f"://{USER}:{TOKEN}@")
            await git.run("remote", "set-url", "--push", "origin", url, cwd=clone)
        await git.fetch(clone, "--quiet", "origin", start)
        await git.run("checkout", "--quiet", "--detach", start, cwd=clone)
        return await git.commit_file(clone, "pushed.txt", f"{self._pushes}\n", "Hydrate")

    async def _settle(self, one: Repository, before: str) -> None:
        """Have it decided whether a push that failed came about: if not, it never will."""
        history, pushes = one.watch.history, self._estate.ledger.pushes
        async with one.pushing:
            other = await self._made(one, [MAIN])
            history.record(THROUGH, other)
            try:
                await asyncio.to_thread(one.upstream.git, "update-ref", THROUGH, other, before)
            except GitFailed:
                history.withdraw(THROUGH)
                pushes["through the mirror, unheard"] += 1
            else:
                pushes["through the mirror, in vain"] += 1
