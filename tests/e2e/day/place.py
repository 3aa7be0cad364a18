"""Where the day is played: a forge 100 ms away, the mirror as a process in front of it.

Everybody signs in: the mirror at the forge, with a token in a file that is replaced in the
course of the day, and the controllers at the mirror, each with a token of its own.
"""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import aiohttp

from mirror.access.tokens import create_token
from mirror.config import load
from mirror.demo.forge import BasicAuth, HttpBackend
from mirror.demo.latency import LatencyProxy
from mirror.places import DataDirectory
from tests.e2e.day.process import STEP_SECONDS_MAX, MirrorProcess, running
from tests.e2e.day.rules import Record
from tests.git_client import GitClient, Upstream
from tests.mirror_service import NAME, SECRET, configuration
from tests.ports import free_port

RTT_SECONDS: Final = 0.1
USER: Final = "deployer"
READERS: Final = ("argocd", "flux", "ci", "receiver")
FORGE_TOKENS: Final = ("forge-token-of-the-morning", "forge-token-of-the-evening")


@dataclass(slots=True)
class Place:
    """All that the players share.

    Attributes:
        chance: The day's random numbers.
        directory: All files of the day.
        line: The way to the forge; the mirror knows no other.
        tokens: The readers' tokens at the mirror, by name.
        forge_token: What the forge takes now.
        floors: By ref, the latest push whose webhook was accepted.
        is_over: Controllers end with their next answer.
    """

    chance: random.Random
    directory: Path
    forge: HttpBackend
    line: LatencyProxy
    upstream: Upstream
    mirror: MirrorProcess
    session: aiohttp.ClientSession
    tokens: dict[str, str]
    record: Record = field(default_factory=Record)
    forge_token: str = FORGE_TOKENS[0]
    floors: dict[str, int] = field(default_factory=dict)
    is_over: bool = False

    @property
    def url(self) -> str:
        """The repository's URL at the mirror."""
        return f"{self.mirror.url}/{NAME}"

    @property
    def upstream_url(self) -> str:
        """The repository's URL as the mirror and the forge's webhooks have it."""
        return f"{self.line.url}/{NAME}.git"

    def client(self, reader: str) -> GitClient:
        """Return a git client of a reader.

        It has the reader's token for the mirror, and the forge's for URLs with the forge's user in
        them: pushes go through the mirror, but it is the forge that asks who one is.
        """
        store = self.directory / reader / "password"
        store.parent.mkdir(exist_ok=True)
        store.write_text(self.tokens[reader])
        helper = (
            f'!f() {{ while read -r line && test -n "$line"; do case $line in username={USER})'
            f" forge=1; esac; done; if test -n \"$forge\"; then cat '{self._forge_token_at_ci}';"
            f" else echo username={reader}; echo \"password=$(cat '{store}')\"; fi; }}; f"
        )
        return GitClient(self.directory / reader, config={"credential.helper": helper})

    def expire_forge_token(self) -> None:
        """Let the forge take another token from now on; CI has it, the mirror does not."""
        self.forge_token = FORGE_TOKENS[1]
        self.forge.account = BasicAuth(USER, self.forge_token)
        self.write_ci_token()

    def write_ci_token(self) -> None:
        """Give CI what the forge takes."""
        self._forge_token_at_ci.write_text(f"username={USER}\npassword={self.forge_token}\n")

    def rotate_forge_token(self) -> None:
        """Give the mirror what the forge takes: the file is replaced, as mounted secrets are."""
        write_secret(self.directory / "mirror" / "forge-token", self.forge_token)

    @property
    def _forge_token_at_ci(self) -> Path:
        return self.directory / "ci-forge-token"


@asynccontextmanager
async def set_up(directory: Path, *, seed: int, workers: int, relays: str) -> AsyncIterator[Place]:
    """Open the place: the mirror has made its first clone.

    Args:
        directory: Takes all files.
        seed: Of the day's random numbers.
        workers: How many processes serve.
        relays: The section of the configuration.
    """
    root = directory / "forge"
    root.mkdir()
    upstream = Upstream(root)
    first = upstream.commit(files={"base/app.yaml": "image: web:1.0.0\n"}, message="Begin")
    async with (
        HttpBackend(root, basic_auth=(USER, FORGE_TOKENS[0])) as forge,
        LatencyProxy("127.0.0.1", forge.port, RTT_SECONDS) as line,
    ):
        port = free_port()
        file, tokens = _configure(directory / "mirror", forge, line, port, workers, relays)
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(force_close=True),
                timeout=aiohttp.ClientTimeout(total=STEP_SECONDS_MAX),
                auto_decompress=True,
            ) as session,
            running(file, f"http://127.0.0.1:{port}") as mirror,
        ):
            place = Place(
                random.Random(seed), directory, forge, line, upstream, mirror, session, tokens
            )
            place.write_ci_token()
            place.record.baseline = {
                "refs/heads/main": place.record.history.record("refs/heads/main", first)
            }
            await mirror.logged(0, lambda event: event["event"] == "published")
            yield place


def _configure(
    directory: Path,
    forge: HttpBackend,
    line: LatencyProxy,
    port: int,
    workers: int,
    relays: str,
) -> tuple[Path, dict[str, str]]:
    """Write the configuration; returns it, and the readers' tokens."""
    directory.mkdir(exist_ok=True)
    write_secret(directory / "forge-token", FORGE_TOKENS[0])
    file = configuration(
        forge,
        directory,
        workers=workers,
        listen=f"127.0.0.1:{port}",
        sections=relays,
        repository=f"""
            access: [readers]
            push: proxy
            poll_interval: 500ms
            credentials: {{username: {USER}, password_file: forge-token}}
        """,
    )
    file.write_text(file.read_text().replace(forge.url, line.url))
    store = DataDirectory(load(file).data_dir).tokens
    store.parent.mkdir(parents=True, exist_ok=True)
    return file, {
        name: create_token(store, name, repositories=("acme/*",), expires_at=None)
        for name in READERS
    }


def write_secret(file: Path, secret: str) -> None:
    new = file.with_suffix(".new")
    new.touch(mode=0o600)
    new.write_text(secret + "\n")
    new.rename(file)


def secrets_of(place: Place) -> list[str]:
    """Return what no log may hold."""
    return [SECRET, *FORGE_TOKENS, *place.tokens.values()]
