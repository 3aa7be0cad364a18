"""Ports for services that are told theirs, and keep it from one start to the next.

A port that the kernel gave a moment ago it may give to the next connection that anybody opens, and
another test process may be given it as well. So these are from below what the kernel gives, and
each is claimed by a name that can be bound once on this machine.
"""

import random
import socket
from pathlib import Path
from typing import Final

LOWEST: Final = 10_000
"""Below are the ports of programs that people know by number."""

KERNELS_OWN: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
TRIES_MAX: Final = 1000

_chance = random.SystemRandom()  # pytest-randomly seeds the other one, the same in all processes


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody uses, and that no other test gets.

    It stays claimed until this process ends: a service may be stopped and started on it.
    """
    end = max(int(KERNELS_OWN.read_text().split()[0]), 2 * LOWEST)
    for _ in range(TRIES_MAX):
        port = _chance.randrange(LOWEST, end)
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0git-mirror-test-port-{port}")
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            claim.close()
            continue
        claim.detach()
        return port
    raise AssertionError(f"no port of 127.0.0.1 is free between {LOWEST} and {end}")
