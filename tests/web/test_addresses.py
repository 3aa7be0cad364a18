"""Where the service listens: IPv4, IPv6, and both, with one process and with several."""

import asyncio
import socket
from pathlib import Path

import pytest

from mirror.config import ListenAddress
from mirror.demo.forge import HttpBackend
from mirror.errors import LocalError
from mirror.web.listening import bind
from tests.git_client import GitClient, Upstream
from tests.mirror_service import mirroring


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as one:
            one.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@pytest.mark.parametrize(
    ("listen", "workers", "reached", "not_reached"),
    [
        pytest.param("[::1]:0", 1, ["[::1]"], ["127.0.0.1"], marks=needs_ipv6),
        pytest.param("[::]:0", 1, ["[::1]", "127.0.0.1"], [], marks=needs_ipv6),
        pytest.param("[::]:0", 2, ["[::1]", "127.0.0.1"], [], marks=needs_ipv6),
        ("0.0.0.0:0", 1, ["127.0.0.1"], ["[::1]"]),
        ("localhost:0", 1, ["localhost"], []),
    ],
)
async def test_clients_reach_it_where_it_listens_and_nowhere_else(
    forge: HttpBackend,
    upstream: Upstream,
    git_client: GitClient,
    tmp_path: Path,
    listen: str,
    workers: int,
    reached: list[str],
    not_reached: list[str],
) -> None:
    names = [upstream.name]
    async with mirroring(
        forge,
        tmp_path / "mirror",
        names=names,
        listen=listen,
        workers=workers,
        defaults="access: [anonymous]",
    ) as mirror:
        port = int(mirror.service.url.rpartition(":")[2])
        for host in reached:
            url = f"http://{host}:{port}/{upstream.name}"
            listed = await git_client.run("ls-remote", url)
            assert upstream.oid() in listed.stdout
        for host in not_reached:
            with pytest.raises(OSError):
                await asyncio.open_connection(host.strip("[]"), port)


@needs_ipv6
async def test_every_address_has_one_port_and_sockets_of_its_own_kind() -> None:
    bound = await bind(ListenAddress("::", 0))
    try:
        assert [one.family for one in bound] == [socket.AF_INET6, socket.AF_INET]
        assert len({one.getsockname()[1] for one in bound}) == 1
    finally:
        for one in bound:
            one.close()


@needs_ipv6
async def test_an_address_that_is_taken_is_named_and_nothing_stays_open() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(LocalError, match=rf"can't listen on \[::\]:{port}"):
            await bind(ListenAddress("::", port))
    for one in await bind(ListenAddress("::", port)):
        one.close()


async def test_without_ipv6_every_address_is_every_ipv4_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "socket", socket_without_ipv6(socket.socket))
    (one,) = await bind(ListenAddress("::", 0))
    with one:
        assert one.family == socket.AF_INET
    with pytest.raises(LocalError, match="not supported"):
        await bind(ListenAddress("::1", 0))


def socket_without_ipv6(real: type[socket.socket]) -> type[socket.socket]:
    class WithoutIPv6(real):  # type: ignore[misc, valid-type]
        def __init__(self, family: int = -1, *arguments: int) -> None:
            if family == socket.AF_INET6:
                raise OSError(97, "Address family not supported by protocol")
            super().__init__(family, *arguments)

    return WithoutIPv6
