"""What receivers are told of, and when."""

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from mirror.demo.forge import HttpBackend
from mirror.refresh.mirror import Mirror
from tests.git_client import Upstream
from tests.mirror_service import (
    NAME,
    ZERO_ID,
    mirroring,
)
from tests.refresh.relay.receiving import (
    PUBLIC_URL,
    Receiver,
    relays,
)
from tests.refresh.relay.telling import all_told, push, refresh, status, telling

MAIN = "refs/heads/main"


async def test_a_push_is_told_as_github_would_with_the_mirrors_own_url(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, receiver: Receiver
) -> None:
    before = upstream.oid()
    async with telling(forge, tmp_path, argo=f"argocd {receiver.url}/api/webhook") as mirror:
        after = await push(mirror, upstream, new="1", **{"README.md": "2"})
        (event,) = await receiver.came(1)
        assert (event.path, event.step) == ("/api/webhook", (MAIN, before, after))
        assert event.headers["X-GitHub-Event"] == "push"
        repository = event.json["repository"]
        assert repository["html_url"] == f"{PUBLIC_URL}/{NAME}"
        assert (repository["full_name"], repository["default_branch"]) == (NAME, "main")
        (commit,) = event.json["commits"]
        assert (commit["added"], commit["modified"], commit["removed"]) == (
            ["new"],
            ["README.md"],
            [],
        )
        shown = await all_told(mirror, "argo")
        assert (await mirror.metric("git_mirror_relay_lag_seconds_count", relay="argo")) == 1
        assert shown["last_error"] is None
        assert shown["last_delivery_at"] is not None


async def test_what_a_poll_found_is_told_too(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, receiver: Receiver
) -> None:
    before = upstream.oid()
    async with telling(forge, tmp_path, argo=f"argocd {receiver.url}/x") as mirror:
        after = upstream.commit()
        await refresh(mirror)
        assert [event.step for event in await receiver.came(1)] == [(MAIN, before, after)]


async def test_nothing_is_told_before_every_process_serves_it(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, receiver: Receiver
) -> None:
    class Slow:
        """Workers that take until the test says so."""

        def __init__(self) -> None:
            self.asked, self.done = asyncio.Event(), asyncio.Event()

        async def announced(self, _: Mirror) -> None:
            """Have nothing to do."""

        async def bundled(self, _: Mirror) -> None:
            """Have nothing to do."""

        async def refreshed(self, _: Mirror) -> None:
            self.asked.set()
            await self.done.wait()

    async with telling(forge, tmp_path, argo=f"argocd {receiver.url}/x") as mirror:
        slow = mirror.mirror().replicas = Slow()
        after = upstream.commit()
        refreshing = asyncio.create_task(refresh(mirror))
        await slow.asked.wait()
        found = mirror.mirror().snapshot
        assert found is not None
        assert found.head == after.encode()  # published here already
        shown = await status(mirror, "argo")
        assert (shown["pending"], receiver.events) == (0, [])
        slow.done.set()
        await refreshing
        assert [event.step[2] for event in await receiver.came(1)] == [after]


@pytest.mark.parametrize("kind", ["argocd", "flux", "webhook"])
async def test_refs_that_come_and_go_and_are_forced_are_told(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, receiver: Receiver, kind: str
) -> None:
    first = upstream.oid()
    old = upstream.commit("old")
    async with telling(forge, tmp_path, one=f"{kind} {receiver.url}/x") as mirror:
        forced = upstream.commit(parents=[])
        tag = upstream.tag("v1", forced)
        upstream.delete_ref("old")
        await refresh(mirror)
        wanted = {
            (MAIN, first, forced),
            ("refs/tags/v1", ZERO_ID, tag),
            ("refs/heads/old", old, ZERO_ID),
        }
        arrived = await receiver.came(1 if kind == "flux" else 3)
        if kind == "flux":
            steps = {(one["ref"], one["before"], one["after"]) for one in arrived[0].json["refs"]}
        elif kind == "argocd":
            steps = {event.step for event in arrived}
            flags = {
                event.json["ref"]: [
                    name for name in ("created", "deleted", "forced") if event.json[name]
                ]
                for event in arrived
            }
            assert flags == {
                MAIN: ["forced"],
                "refs/tags/v1": ["created"],
                "refs/heads/old": ["deleted"],
            }
            assert all(event.json["commits"] == [] for event in arrived)
        else:
            data = [event.json["data"] for event in arrived]
            steps = {
                (one["ref"], one["before"] or ZERO_ID, one["after"] or ZERO_ID) for one in data
            }
            assert all(one["files"] is None for one in data)
        assert steps == wanted


async def test_fleet_is_told_of_branches_alone_and_never_of_a_deletion(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, receiver: Receiver
) -> None:
    upstream.commit("old")
    async with telling(forge, tmp_path, fleet=f"fleet {receiver.url}/") as mirror:
        upstream.delete_ref("old")
        upstream.tag("v1")
        await refresh(mirror)
        assert (await status(mirror, "fleet"))["pending"] == 0
        again = upstream.commit("old")
        await refresh(mirror)
        assert [event.step for event in await receiver.came(1)] == [
            ("refs/heads/old", ZERO_ID, again)
        ]


async def test_a_receiver_is_told_of_the_repositories_that_it_is_for(
    forge: HttpBackend, upstream: Upstream, upstream_root: Path, tmp_path: Path, receiver: Receiver
) -> None:
    other = Upstream(upstream_root, "other/app")
    other.commit()
    secret = Upstream(upstream_root, "acme/secret")
    secret.commit()
    sections = relays(
        tmp_path / "mirror",
        one=f'argocd {receiver.url}/x repositories: ["acme/*", "!acme/sec*"]',
    )
    names = [upstream.name, other.name, secret.name]
    async with mirroring(forge, tmp_path / "mirror", names=names, sections=sections) as mirror:
        for one in (secret, other, upstream):
            one.commit()
            await mirror.announce(one)
            await mirror.caught_up(one)
        arrived = await receiver.came(1)
        assert [event.json["repository"]["full_name"] for event in arrived] == [upstream.name]
        await all_told(mirror, "one")
        assert len(receiver.events) == 1


async def test_controllers_that_write_the_mirror_in_two_ways_are_told_in_both(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, receiver: Receiver
) -> None:
    urls = 'public_urls: ["https://a.example", "http://b.example:8470/git/"]'
    async with telling(forge, tmp_path, one=f"argocd {receiver.url}/x {urls}") as mirror:
        after = await push(mirror, upstream)
        arrived = await receiver.came(2)
        assert [event.json["repository"]["html_url"] for event in arrived] == [
            f"https://a.example/{NAME}",
            f"http://b.example:8470/git/{NAME}",
        ]
        assert {event.step[2] for event in arrived} == {after}
        assert len({event.headers["X-GitHub-Delivery"] for event in arrived}) == 2


async def test_what_changed_upstream_while_nothing_ran_is_told(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, receiver: Receiver
) -> None:
    before = upstream.oid()
    async with telling(forge, tmp_path, one=f"argocd {receiver.url}/x"):
        pass
    after = upstream.commit()
    async with telling(forge, tmp_path, one=f"argocd {receiver.url}/x"):
        assert [event.step for event in await receiver.came(1)] == [(MAIN, before, after)]


async def test_a_new_receiver_is_told_of_nothing_that_was_there_before(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, receiver: Receiver
) -> None:
    async with mirroring(forge, tmp_path / "mirror"):
        pass
    before = upstream.oid()
    async with telling(forge, tmp_path, one=f"argocd {receiver.url}/x") as mirror:
        assert (await status(mirror, "one"))["pending"] == 0
        after = await push(mirror, upstream)
        assert [event.step for event in await receiver.came(1)] == [(MAIN, before, after)]


async def test_a_relay_that_was_taken_out_begins_anew_when_it_comes_back(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, receiver: Receiver
) -> None:
    async with telling(forge, tmp_path, one=f"argocd {receiver.url}/x"):
        pass
    upstream.commit()
    async with telling(forge, tmp_path, other=f"flux {receiver.url}/hook/x"):
        pass
    async with telling(forge, tmp_path, one=f"argocd {receiver.url}/x") as mirror:
        before = upstream.oid()
        after = await push(mirror, upstream)
        await receiver.until(lambda one: one.taken and one.taken[-1].path == "/x")
        told = [event.step for event in receiver.taken if event.path == "/x"]
        assert told == [(MAIN, before, after)]


async def test_without_relays_nothing_is_kept(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    assert upstream.name == NAME
    async with mirroring(forge, tmp_path / "mirror") as mirror:
        assert not list((tmp_path / "mirror" / "data").glob("relays.db*"))
        assert (await mirror.get("/status.json")).json["relays"] == {}


async def test_with_workers_every_event_can_be_fetched_from_each_at_once(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, receiver: Receiver
) -> None:
    answers: list[bool] = []
    async with telling(forge, tmp_path, workers=2, one=f"argocd {receiver.url}/x") as mirror:

        async def answer(event: Any) -> web.StreamResponse:
            async with aiohttp.ClientSession() as session:
                for _ in range(6):  # connections of their own: the kernel spreads them
                    async with session.get(
                        f"{mirror.url()}/info/refs?service=git-upload-pack",
                        headers={"Connection": "close"},
                    ) as response:
                        answers.append(event["after"].encode() in await response.read())
            return web.Response()

        receiver.answer = answer
        for _ in range(5):
            await push(mirror, upstream)
            await mirror.caught_up(upstream)
        last = upstream.oid()
        await receiver.until(lambda one: one.taken and one.taken[-1].step[2] == last)
    assert len(answers) >= 6
    # A later push may have been served by then; the last one was there for sure.
    assert all(answers[-6:])
