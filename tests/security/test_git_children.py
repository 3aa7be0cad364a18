"""git as a child process: what a repository holds is data to it, never a word of a command."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mirror.demo.forge import HttpBackend
from mirror.repository.packing.git_engine import _environment
from mirror.repository.packing.spawner import Spawner
from tests.git_client import GitClient, Upstream
from tests.mirror_service import mirroring, refs_of

HOSTILE_REFS = (
    "refs/heads/--upload-pack=touch${IFS}owned",
    "refs/heads/-c",
    "refs/tags/--output=owned",
    "refs/heads/$(touch${IFS}owned)",
    "refs/heads/`touch${IFS}owned`;touch${IFS}owned",
)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines of all children."""
    lines: list[list[str]] = []
    spawn = Spawner._spawn

    def note(self: Spawner, child: Any, *rest: Any) -> subprocess.Popen[bytes]:
        lines.append([str(word) for word in child.argv])
        return spawn(self, child, *rest)

    monkeypatch.setattr(Spawner, "_spawn", note)
    return lines


async def test_names_that_look_like_options_or_commands_never_reach_a_command_line(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, started: list[list[str]]
) -> None:
    for ref in HOSTILE_REFS:
        upstream.force(ref, "main")
    async with mirroring(forge, tmp_path / "mirror", names=[upstream.name]) as mirror:
        client = GitClient(tmp_path / "client")
        clone = await client.clone(mirror.url(), "--mirror")
        assert await client.refs(clone) == upstream.refs()
    assert started
    for argv in started:
        assert not [word for word in argv if "touch" in word or "refs/" in word or "owned" in word]
        assert not [word for word in argv if upstream.oid() in word or "://" in word]


async def test_hooks_settings_and_replacements_of_an_upstream_are_never_run_or_obeyed(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    owned = tmp_path / "owned"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {owned}\n")
    program.chmod(0o755)
    old = upstream.oid()
    upstream.commit(
        files={
            ".gitmodules": '[submodule "a"]\n\tpath = a\n\turl = -u./owned\n\tupdate = !touch\n',
            ".gitattributes": "* filter=evil diff=evil merge=evil\n",
            ".gitconfig": f"[core]\n\tfsmonitor = {program}\n\thooksPath = .\n",
            "hooks/post-checkout": f"#!/bin/sh\ntouch {owned}\n",
            "HEAD": "ref: refs/heads/main\n",
            "config": f"[core]\n\tfsmonitor = {program}\n\tsshCommand = {program}\n",
        }
    )
    upstream.force(f"refs/replace/{upstream.oid()}", old)
    async with mirroring(forge, tmp_path / "mirror", names=[upstream.name]) as mirror:
        repository = mirror.mirror().repository
        assert repository is not None
        assert not list((repository.path / "hooks").glob("*")), "a mirror has no hooks of its own"
        # Even where somebody put them there, they are not run.
        hooks = repository.path / "hooks"
        hooks.mkdir(exist_ok=True)
        for name in ("post-index-change", "pre-auto-gc", "reference-transaction", "update"):
            (hooks / name).write_bytes(program.read_bytes())
            (hooks / name).chmod(0o755)
        upstream.commit(files={"more.yaml": "a: b\n"})
        await mirror.announce(upstream)
        await mirror.until(lambda one: refs_of(one)["refs/heads/main"] == upstream.oid())
        client = GitClient(tmp_path / "client")
        clone = await client.clone(mirror.url())
        assert await client.rev_parse(clone, "HEAD") == upstream.oid()
        await client.run("fsck", "--connectivity-only", cwd=clone)  # strictly, .gitmodules is bad
        assert await client.output("rev-list", "--count", "HEAD", cwd=clone) == "3"
        config = (repository.path / "config").read_text()
        assert str(program) not in config
        assert "fsmonitor" not in config
    assert not owned.exists()


@pytest.mark.parametrize(
    "url", ["file://{path}", "ext::sh -c touch% owned", "git://127.0.0.1/x", "http://127.0.0.1:1/x"]
)
def test_a_child_may_speak_no_protocol_at_all(url: str, upstream: Upstream) -> None:
    asked = subprocess.run(
        ["git", "ls-remote", url.format(path=upstream.path)],
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.returncode != 0
    assert "not allowed" in asked.stderr


def test_a_child_gets_nothing_of_our_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_SSH_COMMAND", "touch owned")
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", "touch owned")
    env = _environment()
    assert not {"GIT_CONFIG_COUNT", "GIT_SSH_COMMAND", "GIT_EXTERNAL_DIFF"} & set(env)
    assert env["HOME"] == "/nonexistent"
    assert env["GIT_CONFIG_GLOBAL"] == os.devnull
    assert env["GIT_CONFIG_NOSYSTEM"] == env["GIT_NO_REPLACE_OBJECTS"] == "1"
