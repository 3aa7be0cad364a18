"""A successor that fails at the very end takes nothing with it; one that comes may take all."""

import asyncio
from pathlib import Path

import pytest

from mirror import upgrading
from mirror.demo.forge import HttpBackend
from mirror.errors import LocalError, MirrorError
from mirror.handover.messages import HandOverFailed
from tests.git_client import Upstream
from tests.lifecycle.taking_over import Next, successor, taken_over
from tests.mirror_service import NAME, OTHER, MirrorService, configuration, refs_of, serving
from tests.pull_through import AT, read
from tests.refresh.relay.receiving import Receiver, relays

PULLED = f"{AT}/{NAME}"


def files_below(directory: Path) -> set[str]:
    """Return what is in the data directory, but for files that only say what was read when."""
    found = (path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    return {str(path) for path in found if not path.name.startswith("relays.db-")}


async def test_one_that_fails_at_the_last_moment_leaves_all_as_it_was(
    forge: HttpBackend, other: Upstream, receiver: Receiver, tmp_path: Path
) -> None:
    """By its configuration, nearly everything there would have to go."""
    directory = tmp_path / "m"
    told = relays(directory, argo=f"argocd {receiver.url}/x")
    unix = f"unix_socket: {tmp_path / 'http.sock'}"
    place = f"upstreams: [{{at: /{AT}, from: '{forge.url}', repositories: ['**'], forge: github}}]"
    file = configuration(
        forge,
        directory,
        names=[NAME, OTHER],
        server=unix,
        sections=f"{place}\n{told}",
        defaults="bundle_interval: 1h\nbundle_bytes_min: 0",
    )
    good = file.read_text()
    async with serving(file, forge) as mirror:
        await mirror.mirrored(NAME)
        await mirror.mirrored(OTHER)
        await read(mirror, PULLED)
        bundler = mirror.service.bundler
        assert bundler is not None
        await bundler.bundle(NAME)
        await mirror.settled()
        before = files_below(directory / "data")
        listed = (await mirror.info_refs()).body
        url = forge.repository_url
        bad = good.replace(place, "").replace(told, "").replace("bundle_interval: 1h", "")
        bad = bad.replace(f"upstream: {url(NAME)}", f"upstream: {url(OTHER)}")
        file.write_text(bad)
        async with successor(mirror, file) as (service, channel):
            starting = asyncio.create_task(service.__aenter__())
            await channel.expect("prepared")
            channel.tell("yours", repositories={})
            await channel.expect("serving")
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting
            with pytest.raises(HandOverFailed, match="CancelledError"):
                await channel.expect("main")
        file.write_text(good)
        assert files_below(directory / "data") == before
        assert (tmp_path / "http.sock").is_socket()
        # And all goes on.
        assert (await mirror.info_refs()).body == listed
        first = other.oid()
        other.commit()
        await mirror.announce(other)
        await mirror.caught_up(other)
        ((_, told_before, told_after),) = [event.step for event in await receiver.came(1)]
        assert (told_before, told_after) == (first, other.oid())


async def test_another_repository_in_a_place_comes_when_the_old_one_has_no_readers(
    forge: HttpBackend, other: Upstream, tmp_path: Path
) -> None:
    directory = tmp_path / "m"
    file = configuration(forge, directory)
    async with serving(file, forge) as mirror:
        await mirror.mirrored(NAME)
        path = mirror.mirror().path
        url = forge.repository_url
        file.write_text(file.read_text().replace(url(NAME), url(OTHER)))
        async with taken_over(mirror, file) as (service, channel):
            channel.tell("silent")
            new = MirrorService(service, forge, mirror.session)
            with pytest.raises(MirrorError, match="not mirrored yet"):
                new.hosted().gate.current()
            assert not list((directory / "data" / "set-aside").iterdir())
            assert path.is_dir()  # it is being read
            channel.close()  # not any more
            await new.mirrored(NAME)
            (aside,) = (directory / "data" / "set-aside").iterdir()
            assert aside.name.startswith("acme%2Fgitops-repo")
            assert refs_of(new.mirror()) == other.refs()


async def test_one_that_would_have_to_migrate_is_refused_before_anything_pauses(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    del upstream
    file = configuration(forge, tmp_path / "m")
    async with serving(file, forge) as mirror:
        await mirror.mirrored(NAME)
        version = tmp_path / "m" / "data" / "version"
        version.unlink()  # as before there were versions
        async with successor(mirror, file) as (service, channel):
            with pytest.raises(LocalError, match="not an upgrade beside it"):
                await service.__aenter__()
            with pytest.raises(HandOverFailed, match="takes a stop of the running version"):
                await channel.expect("prepared")
        assert not version.exists()
        assert (await mirror.info_refs()).status == 200


async def test_an_upgrade_waits_until_the_one_before_is_over(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what it takes over last, such as the refreshes, would begin after it was handed on."""
    del upstream
    following = Next()
    file = configuration(forge, tmp_path / "m")
    async with serving(file, forge) as mirror:
        await mirror.mirrored()
        async with taken_over(mirror, file) as (service, channel):
            monkeypatch.setattr(upgrading, "Successor", following)
            handing = asyncio.create_task(service.upgrade())
            channel.tell("silent")
            await following.is_started.wait()
            assert service.upgrading is not None
            assert service.upgrading._handed.work.is_going_on
            following.is_serving.set_exception(HandOverFailed("it fell over"))
            with pytest.raises(HandOverFailed, match="it fell over"):
                await handing
