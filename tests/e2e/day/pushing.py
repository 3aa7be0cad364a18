"""CI, and the forge's webhooks: dropped, doubled, late and out of order.

One push at a time, so that the order of the upstream is known; webhooks go their own ways.
"""

import asyncio
from dataclasses import dataclass
from typing import Final

import aiohttp

from tests.e2e.day.place import USER, Place
from tests.git_client import GitFailed
from tests.mirror_service import ZERO_ID, github_headers, github_push

MAIN: Final = "refs/heads/main"
DROPPED, DOUBLED, LATE = 0.25, 0.25, 0.35
"""The shares of webhooks that never come, come twice, and come with a later burst."""

ATTEMPTS_MAX: Final = 50
"""Of a push that is rejected because the clone is behind: the mirror polls every 500 ms."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """A delivery, and the number of the push that it tells of."""

    ref: str
    number: int
    body: bytes
    headers: dict[str, str]


class Webhooks:
    """What the forge sends.

    Attributes:
        counts: Of what became of them.
    """

    def __init__(self, place: Place, tasks: asyncio.TaskGroup) -> None:
        self.counts = {"dropped": 0, "doubled": 0, "late": 0, "accepted": 0, "lost": 0}
        self._place = place
        self._tasks = tasks
        self._shelf: list[Webhook] = []

    def of(self, ref: str, before: str, after: str, number: int) -> Webhook:
        body = github_push(self._place.upstream_url, ref, before, after)
        return Webhook(ref, number, body, github_headers(body))

    def put(self, webhook: Webhook) -> None:
        """Take one for delivery, some time or never."""
        chance = self._place.chance
        if chance.random() < DROPPED:
            self.counts["dropped"] += 1
            return
        self._shelf.append(webhook)
        if chance.random() < DOUBLED:
            self.counts["doubled"] += 1
            self._shelf.append(webhook)

    def send(self) -> None:
        """Send what is on the shelf, in any order, but for what is late."""
        chance = self._place.chance
        chance.shuffle(self._shelf)
        late = [one for one in self._shelf if chance.random() < LATE]
        self.counts["late"] += len(late)
        for one in self._shelf:
            if one not in late:
                self._tasks.create_task(self.deliver(one))
        self._shelf = late

    async def deliver(self, webhook: Webhook) -> None:
        """Deliver one; once it is accepted, no reader is to see what was before it as fresh."""
        place = self._place
        kills, was_up = place.mirror.kills, place.mirror.up.is_set()
        try:
            async with place.session.post(
                f"{place.mirror.url}/webhooks/github", data=webhook.body, headers=webhook.headers
            ) as response:
                status, said = response.status, await response.text()
        except (aiohttp.ClientError, ConnectionError) as error:
            self.counts["lost"] += 1
            if was_up and place.mirror.kills == kills and place.mirror.up.is_set():
                place.record.failures.append(f"a webhook was not taken: {error}")
            return
        if status >= 500 and (not was_up or place.mirror.kills > kills):
            self.counts["lost"] += 1  # a worker outlives the main process for a moment
            return
        if status != 202:
            place.record.failures.append(f"a webhook was answered {status}: {said}")
            return
        self.counts["accepted"] += 1
        floor = place.floors.get(webhook.ref, 0)
        place.floors[webhook.ref] = max(floor, webhook.number)


class Ci:
    """Who pushes: to the forge directly, or through the mirror with the forge's credentials."""

    def __init__(self, place: Place, webhooks: Webhooks) -> None:
        self.webhooks = webhooks
        self.rejected = 0
        self._place = place
        self._git = place.client("ci")
        self._clone = self._git.workdir / "clone"
        self._version = 0

    async def prepare(self) -> None:
        """Clone through the mirror; pushes go there as well, as another user."""
        url = self._place.url
        await self._git.run("clone", "--quiet", url, str(self._clone))
        push_url = url.replace("://", f"://{USER}@")
        await self._git.run("remote", "set-url", "--push", "origin", push_url, cwd=self._clone)

    async def commit(self, ref: str = MAIN) -> Webhook:
        """Push a commit to the forge directly."""
        upstream = self._place.upstream
        self._version += 1
        files = {"base/app.yaml": f"image: web:1.{self._version}.0\n"}
        await asyncio.to_thread(upstream.commit, ref, files)
        return await self._pushed(ref)

    async def force(self) -> Webhook:
        """Take back the last two commits of main and push another in their place."""
        files = {"base/app.yaml": "image: web:1.0.0-rolled-back\n"}
        await asyncio.to_thread(
            self._place.upstream.commit, MAIN, files, parents=["main~2"], message="Roll back"
        )
        return await self._pushed(MAIN)

    async def tag(self, name: str, target: str = "main") -> Webhook:
        """Tag at the forge."""
        await asyncio.to_thread(self._place.upstream.tag, name, target)
        return await self._pushed(f"refs/tags/{name}")

    async def delete(self, ref: str) -> Webhook:
        """Delete a branch at the forge; it is noted before anybody can see it."""
        before = self._place.record.history.tip(ref)
        number = self._place.record.history.record(ref, ZERO_ID)
        await asyncio.to_thread(self._place.upstream.delete_ref, ref)
        return self.webhooks.of(ref, before, ZERO_ID, number)

    async def push(self, ref: str = MAIN) -> Webhook:
        """Commit and push through the mirror, again where somebody else was faster."""
        clone, branch = self._clone, ref.removeprefix("refs/heads/")
        start = f"origin/{branch}" if ref in self._place.record.history.refs else "origin/main"
        self._version += 1
        for _ in range(ATTEMPTS_MAX):
            await self._git.fetch(clone, "--quiet", "--prune", "origin")
            await self._git.run("checkout", "--quiet", "-B", branch, start, cwd=clone)
            content = f"image: web:1.{self._version}.0\n"
            await self._git.commit_file(clone, "base/app.yaml", content, "Bump")
            try:
                await self._git.run("push", "--quiet", "origin", f"HEAD:{ref}", cwd=clone)
            except GitFailed as error:
                if "rejected" not in str(error):
                    raise
                self.rejected += 1
            else:
                return await self._pushed(ref)
        raise AssertionError(f"{ref}: rejected {ATTEMPTS_MAX} times, the mirror stays behind")

    async def _pushed(self, ref: str) -> Webhook:
        history = self._place.record.history
        before = history.tip(ref) if ref in history.refs else ZERO_ID
        after = await asyncio.to_thread(self._place.upstream.oid, ref)
        number = history.record(ref, after)
        return self.webhooks.of(ref, before, after, number)
