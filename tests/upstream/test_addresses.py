"""Which addresses a host's name may lead to."""

import re
import socket

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from mirror.config import Place
from mirror.errors import UpstreamRefused
from mirror.upstream.addresses import GuardedResolver


class Names(AbstractResolver):
    """Says what a test wants said."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.asked: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked.append(host)
        return [
            ResolveResult(hostname=host, host=one, port=port, family=family, proto=0, flags=0)
            for one in self.addresses
        ]

    async def close(self) -> None:
        pass


def place(url: str, *, is_private: bool = False) -> Place:
    return Place(
        at="",
        url=url,
        patterns=("*",),
        is_private=is_private,
        unused_seconds=None,
        gone_seconds=0.0,
    )


async def test_what_a_name_leads_to_is_looked_at_each_time() -> None:
    names = Names()
    resolver = GuardedResolver([place("https://git.example/a")], names)
    names.addresses = ["140.82.121.4"]
    assert [one["host"] for one in await resolver.resolve("git.example", 443)] == names.addresses
    names.addresses = ["10.0.0.1"]
    with pytest.raises(UpstreamRefused, match=r"leads to 10\.0\.0\.1.*private: true"):
        await resolver.resolve("git.example", 443)
    names.addresses = ["10.0.0.1", "140.82.121.4"]
    assert [one["host"] for one in await resolver.resolve("GIT.example")] == ["140.82.121.4"]


async def test_a_private_host_may_be_private_and_still_not_link_local() -> None:
    names = Names()
    resolver = GuardedResolver([place("https://git.example", is_private=True)], names)
    names.addresses = ["10.0.0.1", "169.254.169.254"]
    assert [one["host"] for one in await resolver.resolve("git.example")] == ["10.0.0.1"]
    for address in ("169.254.169.254", "fe80::1%eth0", "::ffff:169.254.169.254"):
        names.addresses = [address]
        with pytest.raises(UpstreamRefused, match=re.escape(address)):
            await resolver.resolve("git.example")


async def test_of_two_places_at_one_host_both_must_say_that_it_is_private() -> None:
    names = Names()
    names.addresses = ["10.0.0.1"]
    places = [place("https://git.example/a", is_private=True), place("https://git.example/b")]
    with pytest.raises(UpstreamRefused):
        await GuardedResolver(places, names).resolve("git.example")


async def test_a_host_that_is_not_named_is_not_looked_up() -> None:
    names = Names()
    resolver = GuardedResolver([place("https://git.example")], names)
    with pytest.raises(UpstreamRefused, match="not a host that `upstreams` names"):
        await resolver.resolve("metadata.example")
    assert names.asked == []


async def test_a_proxy_may_be_anywhere() -> None:
    names = Names()
    names.addresses = ["10.0.0.1"]
    places, proxies = [place("https://git.example")], ["http://proxy.example:3128"]
    resolver = GuardedResolver(places, names, proxies=proxies)
    assert [one["host"] for one in await resolver.resolve("proxy.example")] == ["10.0.0.1"]
    with pytest.raises(UpstreamRefused):
        await resolver.resolve("git.example")
