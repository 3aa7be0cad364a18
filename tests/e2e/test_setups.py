"""What surrounds a clone: empty upstreams, submodules, nested groups, pushes, no git at all."""

import asyncio
import shutil
from pathlib import Path

import pytest

from mirror.demo.forge import HttpBackend
from mirror.repository.packing import spawner
from tests.e2e.comparing import assert_same_repository
from tests.git_client import GitClient, Upstream
from tests.mirror_service import (
    MirrorService,
    gitlab_headers,
    gitlab_push,
    mirroring,
)


async def test_an_empty_upstream_is_cloned_as_empty_until_the_first_push(
    forge: HttpBackend, upstream_root: Path, client: GitClient, tmp_path: Path, engine: str
) -> None:
    upstream = Upstream(upstream_root, "acme/new", branch="trunk")
    names, at_once = [upstream.name], "refs_vanish_after: 0s"
    async with mirroring(
        forge, tmp_path / "m", names=names, engine=engine, defaults=at_once
    ) as mirror:
        through = mirror.url(upstream.name)
        clone = await client.clone(through)
        same = await client.clone(forge.repository_url(upstream.name))
        await assert_same_repository(client, clone, same)
        commit = upstream.commit("trunk")
        await mirror.announce(upstream, "refs/heads/trunk")
        await client.fetch(clone)
        assert await client.rev_parse(clone, "origin/trunk") == commit
        assert await client.default_branch(through) == "refs/heads/trunk"
        await client.fsck(mirror.mirror(upstream.name).path)


async def test_submodules_are_cloned_through_the_mirror(
    forge: HttpBackend, upstream_root: Path, client: GitClient, tmp_path: Path, engine: str
) -> None:
    names = ["acme/app", "acme/charts", "acme/library"]
    app, charts, library = (Upstream(upstream_root, name) for name in names)
    in_library = library.commit(files={"lib.yaml": "lib: 1\n"})
    in_charts = _commit_with_submodule(charts, "library", "../library.git", in_library)
    _commit_with_submodule(app, "charts", "../charts", in_charts)
    async with mirroring(forge, tmp_path / "m", names=names, engine=engine) as mirror:
        clone = await client.clone(mirror.url("acme/app"))
        await client.run("submodule", "update", "--init", "--recursive", cwd=clone)
        assert await client.rev_parse(clone / "charts", "HEAD") == in_charts
        assert (clone / "charts/library/lib.yaml").read_text() == "lib: 1\n"
        again = await client.clone(mirror.url("acme/app"), "--recurse-submodules", "--depth=1")
        assert (again / "charts/library/lib.yaml").read_text() == "lib: 1\n"


def _commit_with_submodule(upstream: Upstream, path: str, url: str, commit: str) -> str:
    """Commit a submodule to main and return the commit."""
    modules = f'[submodule "{path}"]\n\tpath = {path}\n\turl = {url}\n'
    blob = upstream.git("hash-object", "-w", "--stdin", stdin=modules)
    entries = f"100644 blob {blob}\t.gitmodules\n160000 commit {commit}\t{path}\n"
    tree = upstream.git("mktree", "--missing", stdin=entries)
    return upstream.force("main", upstream.git("commit-tree", "-m", "Add a submodule", tree))


async def test_a_project_in_nested_groups_of_gitlab_is_followed(
    forge: HttpBackend, upstream_root: Path, client: GitClient, tmp_path: Path, engine: str
) -> None:
    upstream = Upstream(upstream_root, "group/sub/project")
    before = upstream.commit()
    names = [upstream.name, "group/sub"]
    Upstream(upstream_root, "group/sub").commit()
    async with mirroring(forge, tmp_path / "m", names=names, engine=engine) as mirror:
        clone = await client.clone(mirror.url("group/sub/project.git"))
        after = upstream.commit()
        url = forge.repository_url(upstream.name)
        body = gitlab_push(url, "refs/heads/main", before, after)
        answer = await mirror.deliver(body, gitlab_headers(), forge="gitlab")
        assert (answer.status, answer.json["repositories"]) == (202, [upstream.name])
        await client.fetch(clone)
        assert await client.rev_parse(clone, "origin/main") == after


async def test_a_push_is_refused_and_told_where_to_go(
    mirror: MirrorService, upstream: Upstream, client: GitClient, through: str, direct: str
) -> None:
    clone = await client.clone(through)
    await client.commit_file(clone, "a.txt", "a", "Add a")
    done = await client.run("push", through, "HEAD:refs/heads/new", cwd=clone, check=False)
    assert done.returncode != 0
    assert f"this mirror is read-only; push to {direct}" in done.stderr
    assert "new" not in upstream.refs()
    await client.run("config", "remote.origin.pushurl", direct, cwd=clone)
    await client.run("push", "--quiet", "origin", "HEAD:refs/heads/new", cwd=clone)
    await mirror.announce(upstream, "refs/heads/new")
    await client.fetch(clone)
    assert await client.rev_parse(clone, "origin/new") == upstream.oid("new")


async def test_the_dulwich_engine_starts_no_process_and_looks_for_no_git(
    forge: HttpBackend,
    upstream: Upstream,
    client: GitClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("the service reached for git")

    monkeypatch.setattr(spawner.Spawner, "__init__", forbidden)
    monkeypatch.setattr(shutil, "which", forbidden)
    upstream.tag("v1")
    upstream.history(30)
    names = [upstream.name]
    async with mirroring(forge, tmp_path / "m", names=names, engine="dulwich") as mirror:
        through = mirror.url()
        clones = await asyncio.gather(
            client.clone(through, "--mirror"),
            client.clone(through, "--depth=1"),
            client.clone(through, "--filter=blob:none"),
        )
        upstream.history(3)
        await mirror.announce(upstream)
        for clone in clones:
            await client.fetch(clone, "--tags", "--force", "--prune")
            await client.fsck(clone)
        assert await client.refs(clones[0]) == upstream.refs()


async def test_without_git_the_automatic_engine_is_dulwich(
    forge: HttpBackend,
    upstream: Upstream,
    git_client: GitClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    through_shutil = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: through_shutil(name, path=str(empty)))
    async with mirroring(forge, tmp_path / "m", names=[upstream.name], engine="auto") as mirror:
        status = (await mirror.get("/status.json")).json
        assert status["engine"]["name"] == "dulwich"
        clone = await git_client.clone(mirror.url(), "--mirror")
        assert await git_client.refs(clone) == upstream.refs()
