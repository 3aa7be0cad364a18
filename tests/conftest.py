"""Fixtures of the whole suite: uvloop everywhere, real git at both ends, loopback only."""

import asyncio
import gc
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import structlog
import uvloop
from _pytest.terminal import TerminalReporter
from aiohttp import web_app

from mirror import logs
from mirror.demo.forge import HttpBackend
from mirror.web import fetch, finding
from mirror.workers import managed, supervisor
from tests import mirror_service
from tests.clients import table
from tests.differential.cases import Cases
from tests.git_client import GitClient, Upstream
from tests.refresh.relay.receiving import Receiver, receiving

# Neither looks at a clock: what takes how long is the machine's, which others use, too.
_UNTIMED = hypothesis.settings(
    max_examples=50, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile("dev", _UNTIMED)
hypothesis.settings.register_profile("ci", _UNTIMED, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")

_LOGGING = pytest.StashKey[dict[str, Any]]()
"""How tests log that set up nothing else."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the whole suite run without the fast lane: `make test ARGS=--no-fast-lane`.

    The other options are for the other ways to test that the Makefile has.
    """
    parser.addoption("--no-fast-lane", action="store_true", help="run every service without one")
    parser.addoption("--all-engines", action="store_true", help="see tests/engines.py")
    parser.addoption(
        "--differential-cases", type=int, help="compare so many fetches with git's, made up anew"
    )
    parser.addoption("--image", action="store_true", help="build the image and run it")
    parser.addoption("--systemd", action="store_true", help="boot a Debian to try the units in")
    parser.addoption("--day-seed", type=int, help="the deployment day to play")
    parser.addoption(
        "--fault-rounds", type=int, default=6, help="so many faults at random for each engine"
    )
    parser.addoption("--fault-seed", type=int, default=1, help="the random faults to play")
    parser.addoption("--day-rounds", type=int, default=1, help="so many days, from that one on")
    parser.addoption(
        "--corruption-flips",
        default="5",
        help="how many bits the tests of corruption flip in each of their runs",
    )
    parser.addoption("--corruption-seed", default="1", help="what chooses these bits")
    parser.addoption("--upgrades", type=int, default=1, help="so many upgrades under load in a row")
    parser.addoption("--reloads", type=int, default=10, help="so many reloads, twice, in a row")
    parser.addoption(
        "--lifecycle", action="store_true", help="the slower tests of reloads and upgrades, too"
    )
    parser.addoption("--crash-kills", type=int, default=6, help="kills at random instants")
    parser.addoption("--crash-points", type=int, default=4, help="kills at named points; 0 for all")
    parser.addoption("--crash-cuts", type=int, default=3, help="power cuts, in each of two models")
    parser.addoption("--crash-seed", type=int, default=1, help="the crashes to try")


def pytest_configure(config: pytest.Config) -> None:
    """Hand the options on, and log plainly."""
    gc.disable()  # until all is collected: none of it is garbage
    mirror_service.with_fast_lane = not config.getoption("--no-fast-lane")
    # By default structlog draws a table of every frame's variables: a tenth of the suite's time.
    *others, _ = structlog.get_config()["processors"]
    plain = structlog.dev.ConsoleRenderer(
        colors=False, exception_formatter=structlog.dev.plain_traceback
    )
    structlog.configure(processors=[*others, plain])
    config.stash[_LOGGING] = structlog.get_config()
    if (count := config.getoption("--differential-cases")) is not None:
        Cases.choose(count)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what other tests say, too, unless all was asked for."""
    if not config.getoption("--all-engines"):
        left_out = [one for one in items if one.get_closest_marker("repetition") is not None]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [one for one in items if one.get_closest_marker("repetition") is None]


def pytest_collection_finish() -> None:
    """Look for garbage from here on, but not among what was collected: a third of a second each."""
    gc.freeze()
    gc.enable()


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Let go of the test's services, and of the logs that a command had set up in this process.

    aiohttp keeps 1,024 handlers, and all that is behind.
    """
    web_app._cached_build_middleware.cache_clear()
    root = logging.getLogger()
    if ours := [one for one in root.handlers if type(one).__module__ == logs.__name__]:
        for handler in ours:
            root.removeHandler(handler)
        root.setLevel(logging.WARNING)
        structlog.configure(**item.config.stash[_LOGGING])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Play as many deployment days as asked for."""
    if "day_seed" in metafunc.fixturenames:
        asked_for: int | None = metafunc.config.getoption("--day-seed")
        first = 1 if asked_for is None else asked_for
        rounds: int = metafunc.config.getoption("--day-rounds")
        seeds = range(first, first + rounds)
        metafunc.parametrize("day_seed", seeds, ids=lambda seed: f"seed-{seed}")
        # With one process, too, where somebody asks for days: a minute of the suite's is enough.
        counts = [2] if asked_for is None else [1, 2]
        metafunc.parametrize("workers", counts, ids=lambda count: f"workers-{count}")


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Print the matrix of clients."""
    table.write(terminalreporter)


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run every async test on the loop that production uses."""
    del config, item
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session", autouse=True)
def patience() -> Iterator[None]:
    """Give workers and first clones the time that they need on a machine full of tests.

    Production ends a worker that is silent for 2 s, counts without it after 1 s, and has readers
    come again after 8 or 10 s. Tests of these limits set them themselves.
    """
    with pytest.MonkeyPatch.context() as patched:
        for module, limit in (
            (supervisor, "ANNOUNCE_SECONDS_MAX"),
            (supervisor, "COUNTS_SECONDS_MAX"),
            (managed, "COUNTS_SECONDS_MAX"),
            (finding, "FIRST_WAIT_SECONDS_MAX"),
            (fetch, "WANT_REFRESH_SECONDS_MAX"),
        ):
            patched.setattr(module, limit, mirror_service.WAIT_SECONDS_MAX)
        yield


@pytest.fixture
def only_in_full(request: pytest.FixtureRequest) -> None:
    """Leave a test to `make lifecycle`."""
    if not request.config.getoption("--lifecycle"):
        pytest.skip("takes seconds: `make lifecycle` runs it")


@pytest.fixture
def git_client(tmp_path: Path) -> GitClient:
    """The git command line as it comes: protocol v2."""
    return GitClient(tmp_path / "client")


@pytest.fixture
def upstream_root(tmp_path: Path) -> Path:
    """Where the forge keeps its repositories."""
    root = tmp_path / "forge"
    root.mkdir()
    return root


@pytest.fixture
def upstream(upstream_root: Path) -> Upstream:
    """The repository acme/gitops-repo on the forge, with one commit on main."""
    return Upstream.begun(upstream_root)


@pytest.fixture
def other(upstream_root: Path, upstream: Upstream) -> Upstream:
    """The repository acme/other on the same forge, with one commit."""
    repository = Upstream(upstream_root, mirror_service.OTHER)
    repository.commit(files={"README.md": "other\n"}, message="Begin")
    return repository


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver of events that takes all of them."""
    async with receiving() as running:
        yield running


@pytest.fixture
async def forge(upstream_root: Path) -> AsyncIterator[HttpBackend]:
    """A forge that serves everything below `upstream_root`."""
    async with HttpBackend(upstream_root) as running:
        yield running
