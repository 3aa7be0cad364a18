"""Events: what an operator does: reloads, upgrades; and the maintenance that comes by itself."""

import asyncio
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from tests.soak.asking import Refused
from tests.soak.estate import Estate
from tests.soak.events import Scene, event
from tests.soak.ledger import Trouble

COMMAND_SECONDS_MAX: Final = 150.0
"""An upgrade may take two minutes, before it is given up."""

PUSHES_TO_MERGE: Final = 26
"""Each leaves a pack, where each is refreshed for itself; a repository is merged from 24 on."""

Said = Callable[[dict[str, Any]], bool]


async def command(estate: Estate, *words: str) -> tuple[int, str]:
    """Run one of git-mirror's commands; returns its status and all that it said."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "mirror", words[0], "--config", str(estate.file), *words[1:]],
        capture_output=True,
        text=True,
        check=False,
        timeout=COMMAND_SECONDS_MAX,
    )
    return done.returncode, f"{done.stdout}{done.stderr}"


# --- the configuration ---------------------------------------------------------------------------


async def _reload(scene: Scene, content: str | None, met: Said) -> None:
    """Have the configuration read again, in one of the ways there are.

    Args:
        scene: It.
        content: The file's; `None` for a good one.
        met: Tells of an event of the log that it is done.
    """
    estate = scene.estate
    since, before = estate.mirror.lines, estate.file.read_text()
    if content is None:
        estate.configure()
    else:
        estate.write(content)
    assert estate.file.read_text() != before, "what says the same is not read again by itself"
    way = scene.chance.choice(["signal", "command", "by itself"])
    if way == "signal":
        estate.mirror.send(signal.SIGHUP)
    elif way == "command":
        status, said = await command(estate, "reload")
        if status != int(content is not None):
            estate.ledger.violate("reload", f"ended with {status}: {said}")
    try:
        await estate.mirror.logged(since, met)
    except TimeoutError:
        estate.ledger.violate("reload", f"it was not read again: {way}")


def _is_taken(said: dict[str, Any]) -> bool:
    return bool(said["event"] == "configuration_reloaded")


def _is_refused(said: dict[str, Any]) -> bool:
    return bool(said["event"] == "configuration_refused")


@event("reload", weight=1.5)
async def _reload_good(scene: Scene) -> None:
    """Another configuration: it explains nothing."""
    choose = scene.chance.choice
    for _ in range(2):
        estate = scene.estate
        before = dict(estate.tuning)
        while estate.tuning == before:
            estate.tuning = {
                "poll_interval": choose(["1s", "2s", "3s"]),
                "hold": choose(["1s", "2s", "4s"]),
            }
        await _reload(scene, None, _is_taken)
        await scene.last(0.5, 3)


@event("bad reload", weight=1.5)
async def _reload_bad(scene: Scene) -> None:
    """A file with mistakes: the one before applies; that explains the log's words alone."""
    estate = scene.estate
    good = estate.file.read_text()
    bad = scene.chance.choice(
        [
            good + "nonsense: 1\n",
            good[: good.index("repositories:")] + "repositories: {",
            good.replace("poll_interval", "pole_interval"),
            good.replace("http://", "gopher://"),
            "",
        ]
    )
    with estate.conditions.during(Trouble.CONFIGURATION):
        await _reload(scene, bad, _is_refused)
        await scene.last(0.5, 3)
        since = estate.mirror.lines
        estate.write(good)
        estate.mirror.send(signal.SIGHUP)
        await estate.mirror.logged(since, _is_taken)


@event("repository added", weight=1.5)
async def _repository_added(scene: Scene) -> None:
    """A repository comes and goes by configuration, and again: nobody else notices."""
    estate, one = scene.estate, scene.estate.extra
    url = f"{estate.url(one)}/info/refs?service=git-upload-pack"
    await scene.pusher.commit_unseen(one)
    estate.has_extra = True
    await _reload(scene, None, _is_taken)
    for _ in range(200):
        try:
            shown = await scene.asking.refs(one, 2)
        except Refused:
            shown = {}
        if shown.get("refs/heads/main") == one.watch.history.tip("refs/heads/main"):
            break
        await asyncio.sleep(0.1)
    else:
        estate.ledger.violate(one.name, "it is not shown after it was added")
    git, path = estate.git("extra"), estate.directory / "clients" / "extra" / "clone"
    await git.run("clone", "--quiet", "--mirror", estate.url(one), str(path))
    await git.fsck(path)
    await asyncio.to_thread(shutil.rmtree, path)
    estate.has_extra = False
    await _reload(scene, None, _is_taken)
    answer = await scene.asking.ask("GET", url)
    if answer.status not in {401, 404}:  # as of any name, where some need a token
        estate.ledger.violate(one.name, f"it was removed, and is answered {answer.status}")
    estate.ledger.judged["repositories added"] += 1


# --- upgrades ------------------------------------------------------------------------------------


@event("upgraded", weight=4, ends=True)
async def _upgraded(scene: Scene) -> None:
    """Another process takes over: that explains nothing."""
    estate = scene.estate
    began = time.monotonic()
    status, said = await command(estate, "upgrade")
    if status != 0:
        if not estate.conditions.explain(began, Trouble.MACHINE):
            estate.ledger.violate("upgrade", f"ended with {status}: {said}")
        estate.ledger.excused["upgrade"] += 1
        return
    found = re.search(r"process (\d+) serves now", said)
    assert found is not None, said
    status = await estate.mirror.adopt(int(found[1]))
    if status != 0:
        estate.ledger.violate("upgrade", f"the old process ended with status {status}")


# --- maintenance ---------------------------------------------------------------------------------


@event("merge", weight=1.5)
async def _merge(scene: Scene) -> None:
    """So many pushes that packs are merged, while readers go on."""
    estate = scene.estate
    one = estate.repositories[scene.chance.choice(["acme/app", "acme/private", "acme/lfs"])]
    since = estate.mirror.lines
    for _ in range(PUSHES_TO_MERGE):
        published = estate.mirror.lines
        await scene.pusher.announce_for_sure(one)
        await estate.mirror.logged(
            published,
            lambda said: said["event"] == "published" and said.get("repository") == one.name,
        )
    await estate.mirror.logged(
        since, lambda said: said["event"] in {"maintained", "maintenance_failed"}
    )
    await scene.last(0.5, 2)


@event("force-pushes for long", weight=1.5)
async def _force_pushes_for_long(scene: Scene) -> None:
    """What was taken back is given up and removed soon after, as it is after a day elsewhere."""
    one = scene.estate.repositories["acme/app"]
    for _ in range(12):
        async with one.pushing:
            await scene.pusher.force(one)
        scene.estate.ledger.pushes["force-push"] += 1
        await scene.last(0.1, 0.4)
