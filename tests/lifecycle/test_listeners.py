"""Sockets that were bound before the process: taken where they are what is configured."""

import os
import socket
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from mirror.config import ListenAddress
from mirror.errors import LocalError
from mirror.handover.messages import PROTOCOL, Channel
from mirror.handover.predecessor import Predecessor
from mirror.web.listeners import Inherited, Listeners


async def test_a_socket_that_the_configuration_does_not_know_is_refused() -> None:
    """It may be open to more people than the configuration reckons with."""
    bound = socket.create_server(("127.0.0.1", 0))
    async with AsyncExitStack() as stack:
        with pytest.raises(LocalError, match="make them the same"):
            await Listeners.open(
                stack,
                ListenAddress("127.0.0.2", 8470),
                None,
                Inherited([bound], by_manager=True),
                workers=1,
            )
    assert bound.fileno() == -1  # closed


async def test_a_unix_socket_of_a_socket_unit_is_not_removed(tmp_path: Path) -> None:
    """The next start is given the same."""
    path = tmp_path / "git-mirror.sock"
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(path))
    async with AsyncExitStack() as stack:
        listeners = await Listeners.open(
            stack,
            ListenAddress("127.0.0.1", 0),
            path,
            Inherited([unix], by_manager=True),
            workers=1,
        )
        assert listeners.unix is unix
    assert path.exists()


async def test_it_is_not_removed_by_the_process_that_took_it_over_either(tmp_path: Path) -> None:
    path = tmp_path / "git-mirror.sock"
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(path))
    near, far = socket.socketpair()
    channel = await Channel.open(near)
    channel.tell(
        "hello",
        protocol=PROTOCOL,
        listeners=[unix.detach()],
        lock=os.open(tmp_path / "lock", os.O_CREAT),
        by_manager=True,
    )
    predecessor = await Predecessor.meet(far.detach())
    os.close(predecessor.lock)
    async with AsyncExitStack() as stack:
        await Listeners.open(
            stack,
            ListenAddress("127.0.0.1", 0),
            path,
            Inherited(predecessor.sockets, by_manager=predecessor.by_manager),
            workers=1,
        )
    assert path.exists()
    await predecessor.close()
    channel.close()


@pytest.mark.parametrize(("sockets", "workers"), [(1, 3), (3, 1), (2, 3), (3, 2)])
async def test_every_inherited_socket_has_who_accepts_and_every_worker_a_socket(
    sockets: int, workers: int
) -> None:
    first = socket.create_server(("127.0.0.1", 0), reuse_port=True)
    address = first.getsockname()
    more = [socket.create_server(address, reuse_port=True) for _ in range(sockets - 1)]
    async with AsyncExitStack() as stack:
        inherited = [first, *more]
        listeners = await Listeners.open(
            stack, ListenAddress(*address), None, Inherited(inherited), workers=workers
        )
        shares = [listeners.of(number, workers) for number in range(1, workers + 1)]
        assert all(shares)
        assert {id(one) for share in shares for one in share} == set(map(id, inherited))
        assert set(map(id, listeners.all)) == set(map(id, inherited))
