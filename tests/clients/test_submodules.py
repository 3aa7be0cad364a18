"""Submodules come through the mirror, from repositories that are named relative to it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mirror.demo.forge import HttpBackend
from tests.clients.git_cli import machine_git, newest_git
from tests.clients.operations import Unavailable
from tests.engines import PARAMS
from tests.git_client import GitClient, Upstream
from tests.mirror_service import mirroring


def submodule(upstream: Upstream, path: str, of: Upstream) -> None:
    """Commit a submodule at `path` of main, by a URL relative to the repository's own."""
    url = f"../{of.name.split('/')[1]}"
    modules = f'[submodule "{path}"]\n\tpath = {path}\n\turl = {url}\n'
    blob = upstream.git("hash-object", "-w", "--stdin", stdin=modules)
    entries = upstream.git("ls-tree", "main")
    tree = f"{entries}\n100644 blob {blob}\t.gitmodules\n160000 commit {of.oid()}\t{path}\n"
    commit = upstream.git(
        "commit-tree", "-p", "main", "-m", f"Use {of.name}", upstream.git("mktree", stdin=tree)
    )
    upstream.force("main", commit)


@pytest.mark.parametrize("engine", PARAMS)
@pytest.mark.parametrize("program", [machine_git, newest_git])
async def test_submodules_of_submodules_are_checked_out(
    forge: HttpBackend,
    upstream_root: Path,
    tmp_path: Path,
    engine: str,
    program: Callable[[], str],
) -> None:
    try:
        git = program()
    except Unavailable as error:
        pytest.skip(str(error))
    innermost, library, fleet = (
        Upstream(upstream_root, f"acme/{name}") for name in ("innermost", "library", "fleet")
    )
    for upstream in (innermost, library, fleet):
        upstream.commit(files={"name": upstream.name})
    submodule(library, "inner", innermost)
    submodule(fleet, "vendor", library)
    names = [upstream.name for upstream in (innermost, library, fleet)]
    async with mirroring(forge, tmp_path / "mirror", names=names, engine=engine) as mirror:
        client = GitClient(tmp_path / "client", program=git)
        clone = await client.clone(mirror.url(fleet.name))
        await client.run("submodule", "update", "--init", "--recursive", cwd=clone)
        assert (clone / "vendor" / "inner" / "name").read_text() == innermost.name

        pinned = library.commit(files={"name": "newer"})
        await mirror.announce(library)
        fleet.git("update-ref", "refs/heads/main", _moved(fleet, "vendor", pinned))
        await mirror.announce(fleet)
        await client.run("pull", "--quiet", "--ff-only", cwd=clone)
        shallow = ("--init", "--recursive", "--depth=1")
        await client.run("submodule", "update", *shallow, cwd=clone)
        assert (clone / "vendor" / "name").read_text() == "newer"
        status = await client.output("submodule", "status", "--recursive", cwd=clone)
        assert pinned in status
        assert innermost.oid() in status


def _moved(upstream: Upstream, path: str, commit: str) -> str:
    """Commit another commit of a submodule."""
    lines = upstream.git("ls-tree", "main").splitlines()
    kept = [line for line in lines if not line.endswith(f"\t{path}")]
    tree = "\n".join([*kept, f"160000 commit {commit}\t{path}\n"])
    return upstream.git(
        "commit-tree", "-p", "main", "-m", f"Move {path}", upstream.git("mktree", stdin=tree)
    )
