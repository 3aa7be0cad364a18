"""What is fuzzed: a service with all switched on, before a forge that does not change."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml

from mirror.access.tokens import create_token
from mirror.demo.forge import HttpBackend
from mirror.places import DataDirectory
from tests.e2e.day.place import write_secret
from tests.git_client import Upstream
from tests.lfs_server import LfsServer, lfs_server, noise, oid_of
from tests.mirror_service import SECRET
from tests.web.asking import command

OPEN: Final = "acme/app"
PRIVATE: Final = "acme/private"
STRICT: Final = "acme/strict"
PUSHED: Final = "acme/pushed"
FORGES: Final = {OPEN: "github", PRIVATE: "gitlab", STRICT: "gitea", PUSHED: "bitbucket"}
AT: Final = "code"
PULLED: Final = "team/pulled"

HIDDEN: Final = "hidden-from-who-has-no-token"
"""A branch of the private repository: whoever reads its name was let in."""

LFS_BYTES: Final = 100_000


@dataclass(frozen=True, slots=True)
class Known:
    """What a fuzzer may know, to get beyond the first check.

    Attributes:
        tips: The tip of `main`, by repository.
        parents: The commit before it.
        urls: Clone URLs at the forge, by repository.
        token: Lets its bearer read all below `acme`.
        lfs: Id and size of an LFS object of `acme/app`.
        secrets: What no answer may hold.
    """

    tips: dict[str, str]
    parents: dict[str, str]
    urls: dict[str, str]
    token: str
    lfs: tuple[str, int]
    secrets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Estate:
    """The parts; whoever set them up starts the service with `file`."""

    file: Path
    forge: HttpBackend
    lfs: LfsServer
    known: Known


@asynccontextmanager
async def set_up(
    directory: Path, *, listen: str, workers: int = 1, has_bundles: bool = True
) -> AsyncIterator[Estate]:
    """Make everything but the service.

    Args:
        directory: Takes all files.
        listen: Where the service is to listen.
        workers: How many processes serve.
        has_bundles: Whether `acme/app` offers bundles, some time after its clone.
    """
    root, home = directory / "forge", directory / "mirror"
    root.mkdir(parents=True)
    home.mkdir()
    write_secret(home / "webhook-secret", SECRET)
    tips, parents = await asyncio.to_thread(_repositories, root)
    async with HttpBackend(root) as forge, lfs_server(forge) as lfs:
        content = noise(LFS_BYTES)
        lfs.add(OPEN, content)
        file = home / "mirror.yaml"
        file.write_text(
            yaml.safe_dump(
                _document(forge, listen, workers, has_bundles=has_bundles), sort_keys=False
            )
        )
        store = DataDirectory(home / "data").tokens
        store.parent.mkdir()
        token = create_token(store, "fuzzer", repositories=("acme/*",), expires_at=None)
        yield Estate(
            file,
            forge,
            lfs,
            Known(
                tips=tips,
                parents=parents,
                urls={name: forge.repository_url(name) for name in FORGES},
                token=token,
                lfs=(oid_of(content), LFS_BYTES),
                secrets=(SECRET, str(home / "data")),
            ),
        )


def _repositories(root: Path) -> tuple[dict[str, str], dict[str, str]]:
    tips, parents = {}, {}
    for name in (*FORGES, PULLED):
        upstream = Upstream(root, name)
        upstream.commit(
            files={"base/app.yaml": "image: web:1.0.0\n", "a/b": "c\n"}, message="Begin"
        )
        parents[name], tips[name] = upstream.history(2)
        upstream.tag("v1")
        if name == PRIVATE:
            upstream.branches({HIDDEN: tips[name]})
    return tips, parents


def _document(
    forge: HttpBackend, listen: str, workers: int, *, has_bundles: bool
) -> dict[str, object]:
    special: dict[str, dict[str, object]] = {
        OPEN: {"bundle_interval": "1s", "bundle_bytes_min": 0} if has_bundles else {},
        PRIVATE: {"access": ["readers"]},
        STRICT: {"on_stale": "refuse"},
        PUSHED: {"push": "proxy"},
    }
    return {
        "server": {
            "listen": listen,
            "workers": workers,
            "trusted_proxies": ["127.0.0.1/32"],
            "monitoring_from": ["127.0.0.0/8"],
        },
        "data_dir": "data",
        "log": {"format": "json"},
        "limits": {
            "request_bytes_max": "1MiB",
            "pack_cache_bytes_max": "64MiB",
            "push_bytes_max": "1MiB",
            "pull_through_repositories_max": 2,
            "upstream_timeout": "10s",
        },
        "defaults": {"poll_interval": "never", "webhook_secret_file": "webhook-secret"},
        "repositories": {
            name: {"upstream": forge.repository_url(name), "forge": kind, **special[name]}
            for name, kind in FORGES.items()
        },
        "upstreams": [
            {"at": f"/{AT}", "from": forge.url, "repositories": ["team/*"], "forge": "github"}
        ],
    }


def poll_v0(name: str, *headers: str) -> bytes:
    """Return a poll as Argo CD's go-git sends it."""
    lines = [f"GET /{name}/info/refs?service=git-upload-pack HTTP/1.1", "Host: x", *headers, "", ""]
    return "\r\n".join(lines).encode()


def poll_v2(name: str, *headers: str) -> bytes:
    """Return an ls-refs as git sends it."""
    body = command("ls-refs", "peel", "symrefs")
    lines = [
        f"POST /{name}/git-upload-pack HTTP/1.1",
        "Host: x",
        "Content-Type: application/x-git-upload-pack-request",
        "Git-Protocol: version=2",
        *headers,
        f"Content-Length: {len(body)}",
        "",
        "",
    ]
    return "\r\n".join(lines).encode() + body
