"""A service in front of an LFS server, and what a reader without git-lfs says to it."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mirror.demo.forge import HttpBackend
from tests.git_client import Upstream
from tests.lfs_server import LFS_TYPE, LfsServer, lfs_server, oid_of
from tests.mirror_service import NAME, Answered, MirrorService, mirroring

LFS_HEADERS = {"Accept": LFS_TYPE, "Content-Type": f"{LFS_TYPE}; charset=utf-8"}


class Estate:
    """The service, and the LFS server behind it."""

    def __init__(self, mirror: MirrorService, server: LfsServer) -> None:
        self.mirror = mirror
        self.server = server

    @property
    def store(self) -> Path:
        """Where the service keeps its objects."""
        return self.mirror.service.settings.data_dir / "lfs"

    def kept(self) -> list[str]:
        """Return the ids of the objects on disk."""
        return sorted(path.name for path in (self.store / "objects").glob("*/*/*"))

    def arriving(self) -> list[str]:
        """Return the names of what is on its way."""
        return [path.name for path in (self.store / "tmp").iterdir()]

    async def batch(
        self,
        *contents: bytes,
        name: str = NAME,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> Answered:
        """Ask for objects."""
        objects = [{"oid": oid_of(one), "size": len(one)} for one in contents]
        document = {"operation": "download", "objects": objects, **more}
        return await self.mirror.ask(
            "POST",
            f"/{name}.git/info/lfs/objects/batch",
            body=json.dumps(document).encode(),
            headers={**LFS_HEADERS, **(headers or {})},
        )

    async def errors(self, *contents: bytes, name: str = NAME) -> list[tuple[int, str] | None]:
        """Ask for objects; returns the error of each, `None` where there is none."""
        answer = await self.batch(*contents, name=name)
        assert answer.status == 200, answer
        return [
            (one["error"]["code"], one["error"]["message"]) if "error" in one else None
            for one in answer.json["objects"]
        ]

    def path(self, content: bytes, name: str = NAME) -> str:
        return f"/{name}.git/info/lfs/objects/{oid_of(content)}"

    async def get(
        self, content: bytes, *, name: str = NAME, headers: Mapping[str, str] | None = None
    ) -> Answered:
        """Ask for an object's bytes."""
        return await self.mirror.get(self.path(content, name), headers=headers)

    async def granted(self, *contents: bytes, name: str = NAME) -> None:
        """Give objects to the upstream, and ask for them."""
        for content in contents:
            self.server.add(name, content)
        assert await self.errors(*contents, name=name) == [None] * len(contents)


@asynccontextmanager
async def estate(
    forge: HttpBackend, upstream: Upstream, directory: Path, **more: Any
) -> AsyncIterator[Estate]:
    """Run a service over one repository, with an LFS server beside its forge."""
    async with (
        lfs_server(forge) as server,
        mirroring(forge, directory, **{"names": [upstream.name], **more}) as mirror,
    ):
        yield Estate(mirror, server)
