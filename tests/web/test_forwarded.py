from ipaddress import ip_network

import pytest

from mirror.web.forwarded import NO_PROXIES, Proxies

PROXIES = Proxies((ip_network("10.0.0.0/8"), ip_network("fd00::/8")))


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", ["198.51.100.1"], "192.0.2.1"),  # nobody believes this peer
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["1.1.1.1, 198.51.100.1"], "198.51.100.1"),  # the first may be made up
        ("10.0.0.1", ["198.51.100.1, 10.0.0.2"], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1", "10.0.0.2, 10.0.0.3"], "198.51.100.1"),
        ("10.0.0.1", ["1.1.1.1, garbage"], "10.0.0.1"),
        ("10.0.0.1", ["10.0.0.3"], "10.0.0.3"),
        ("fd00::1", ["2001:db8::1"], "2001:db8::1"),
        ("::ffff:10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        (None, ["198.51.100.1"], "local"),
    ],
)
def test_the_client_is_the_last_hop_that_is_no_proxy_of_ours(
    peer: str | None, forwarded: list[str], client: str
) -> None:
    assert PROXIES.client(peer, forwarded) == client


def test_without_proxies_nobody_is_believed() -> None:
    assert NO_PROXIES.client("10.0.0.1", ["198.51.100.1"]) == "10.0.0.1"
    said = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "evil.example"}
    assert NO_PROXIES.origin("10.0.0.1", said, "http", "mirror") == ("http", "mirror")
    assert PROXIES.origin("192.0.2.1", said, "http", "mirror") == ("http", "mirror")


def test_a_proxy_of_ours_says_how_the_reader_came() -> None:
    said = {"X-Forwarded-Proto": "HTTPS, http", "X-Forwarded-Host": "git.example, inner"}
    assert PROXIES.origin("10.0.0.1", said, "http", "mirror") == ("https", "git.example")
    assert PROXIES.origin("10.0.0.1", {}, "http", "mirror") == ("http", "mirror")
