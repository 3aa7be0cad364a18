"""How a command asks the running service for something: over its control socket."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp


@asynccontextmanager
async def asked(control: Path, path: str) -> AsyncIterator[aiohttp.ClientResponse]:
    """Provide the service's answer to `POST path`, which may take as long as what it asks for.

    Raises:
        aiohttp.ClientError: It can't be asked at that socket, or broke off.
    """
    connector = aiohttp.UnixConnector(str(control))
    timeout = aiohttp.ClientTimeout(total=None)
    async with (
        aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
        session.post(f"http://control{path}") as response,
    ):
        yield response
