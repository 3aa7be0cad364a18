"""What two repositories must have in common to be the same to their user."""

import asyncio
from pathlib import Path

from tests.git_client import GitClient


async def assert_same_repository(client: GitClient, one: Path, other: Path) -> None:
    """Assert equal refs, HEAD, shallow boundary and objects, commit for commit, and soundness.

    Objects that a partial clone lacks count too: both must lack the same ones.
    """
    described, expected = await asyncio.gather(_described(client, one), _described(client, other))
    for aspect, value in expected.items():
        assert described[aspect] == value, aspect
    await client.fsck(one)


async def _described(client: GitClient, repository: Path) -> dict[str, object]:
    objects = ["rev-list", "--objects", "--all", "--missing=print"]
    head, refs, reached, shallow = await asyncio.gather(
        client.run("rev-parse", "--symbolic-full-name", "HEAD", cwd=repository, check=False),
        client.refs(repository),
        client.output(*objects, cwd=repository),
        client.output("rev-parse", "--git-path", "shallow", cwd=repository),
    )
    boundary = repository / shallow
    return {
        "head": head.stdout,
        "refs": refs,
        "objects": sorted(reached.splitlines()),
        "shallow": sorted(boundary.read_text().split()) if boundary.exists() else [],
    }
