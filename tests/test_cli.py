import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from click.testing import CliRunner

from mirror import config
from mirror.cli import main
from mirror.demo.forge import HttpBackend
from tests.git_client import GitClient, Upstream
from tests.mirror_service import configuration

NAME = "acme/gitops-repo"


@pytest.fixture
def config_file(tmp_path: Path, forge: HttpBackend, upstream: Upstream) -> Path:
    file = tmp_path / "mirror.yaml"
    file.write_text(
        f"""\
server: {{listen: "127.0.0.1:0"}}
data_dir: data
repositories:
  {NAME}: {{upstream: {forge.repository_url(upstream.name)}}}
"""
    )
    return file


async def run(*args: str, env: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    """Run the command line as a process of its own, while this process serves the forge."""
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "mirror", *args],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, **(env or {})},
    )


def start_service(config_file: Path) -> tuple["subprocess.Popen[str]", str]:
    """Start `git-mirror serve`; returns the process and its URL, once it has published."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mirror", "serve", "--config", str(config_file)],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    url, has_published = "", False
    with ExitStack() as undone:
        undone.callback(process.communicate)
        undone.callback(process.kill)
        for line in process.stderr:  # either may come first
            event = json.loads(line)
            url = event.get("url", url)
            has_published |= event["event"] == "published"
            if url and has_published:
                undone.pop_all()
                return process, url
    raise AssertionError("it ended before it had published")


def test_help_names_every_command() -> None:
    shown = CliRunner().invoke(main, ["--help"]).output
    for command in ("serve", "check", "sync", "status", "demo", "config"):
        assert command in shown


def test_check_reports_every_mistake_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "mirror.yaml"
    file.write_text("defaults:\n  pol_interval: 30s\nrepositories:\n  a/b: {upstream: ftp://x/y}\n")
    done = CliRunner().invoke(main, ["check", "--config", str(file)])
    assert done.exit_code == 1
    assert f"{file}:2" in done.output
    assert "poll_interval" in done.output
    assert f"{file}:4" in done.output


def test_the_schema_is_json_and_the_reference_is_what_is_committed() -> None:
    assert json.loads(CliRunner().invoke(main, ["config", "schema"]).output)["properties"]
    committed = Path("docs/configuration.md").read_text()
    assert CliRunner().invoke(main, ["config", "reference"]).output == committed


async def test_check_online_says_which_upstream_has_what_problem(
    config_file: Path, forge: HttpBackend
) -> None:
    good = await run("check", "--config", str(config_file), "--online")
    assert (good.returncode, good.stderr) == (0, "")
    assert NAME in good.stdout
    forge.faults.status = 404
    bad = await run("check", "--config", str(config_file), "--online")
    assert bad.returncode == 1
    assert f"repositories.{NAME}" in bad.stderr
    assert "no such repository" in bad.stderr


@pytest.mark.parametrize("is_v0", [False, True])
async def test_check_online_and_sync_refuse_a_sha256_upstream_in_one_sentence(
    forge: HttpBackend, upstream_root: Path, tmp_path: Path, is_v0: bool
) -> None:
    forge.faults.force_protocol_v0 = is_v0
    Upstream(upstream_root, "acme/modern", object_format="sha256").commit()
    file = configuration(forge, tmp_path, names=["acme/modern"])
    for command in (("check", "--online"), ("sync", "acme/modern")):
        done = await run(command[0], "--config", str(file), *command[1:])
        assert done.returncode == 1
        sentences = [line for line in done.stderr.splitlines() if "object format" in line]
        assert len(sentences) == 1
        assert "is sha256, and only sha1 repositories can be mirrored: take it" in sentences[0]
        assert "Traceback" not in done.stderr
    assert not list((tmp_path / "data").glob("repositories/**/HEAD"))


async def test_sync_without_a_service_clones_and_then_refreshes(
    config_file: Path, upstream: Upstream, git_client: GitClient
) -> None:
    first = await run("sync", "--config", str(config_file), NAME)
    assert first.returncode == 0, first.stderr
    assert "up to date" in first.stdout
    tip = upstream.commit(files={"a": "2"})
    again = await run("sync", NAME + ".git", env={"GIT_MIRROR_CONFIG": str(config_file)})
    assert again.returncode == 0, again.stderr
    bare = config.load(config_file).data_dir / "repositories" / f"{NAME}.git"
    assert await git_client.rev_parse(bare, "main") == tip


async def test_sync_of_a_failing_upstream_says_why(config_file: Path, forge: HttpBackend) -> None:
    forge.faults.status = 401
    done = await run("sync", "--config", str(config_file), NAME)
    assert done.returncode == 1
    assert "credentials" in done.stderr


async def test_sync_of_an_unknown_repository_names_the_known_ones(config_file: Path) -> None:
    done = await run("sync", "--config", str(config_file), "acme/other")
    assert done.returncode == 1
    assert NAME in done.stderr


async def test_a_service_serves_syncs_on_request_and_ends_on_sigterm(
    config_file: Path, upstream: Upstream, git_client: GitClient
) -> None:
    process, url = await asyncio.to_thread(start_service, config_file)
    try:
        clone = await git_client.clone(f"{url}/{NAME}")
        tip = upstream.commit(files={"a": "2"})
        synced = await run("sync", "--config", str(config_file), NAME)
        assert synced.returncode == 0, synced.stderr
        await git_client.fetch(clone)
        assert await git_client.rev_parse(clone, "origin/main") == tip
        shown = await run("status", "--url", url)
        assert shown.returncode == 0, shown.stderr
        assert "fresh" in shown.stdout
        assert tip[:12] in shown.stdout
        as_json = await run("status", "--url", url, "--json")
        assert json.loads(as_json.stdout)["repositories"][NAME]["head_commit"] == tip
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 30) == 0
    finally:
        process.kill()
        await asyncio.to_thread(process.communicate)


async def test_status_without_a_service_says_so(config_file: Path) -> None:
    done = await run("status", "--url", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert "is the service running?" in done.stderr


async def test_a_taken_port_is_named(config_file: Path, forge: HttpBackend) -> None:
    text = config_file.read_text().replace("127.0.0.1:0", f"127.0.0.1:{forge.port}")
    config_file.write_text(text)
    done = await run("serve", "--config", str(config_file))
    assert done.returncode == 1
    assert str(forge.port) in done.stderr
    assert "another service" in done.stderr


async def test_the_demonstration_verifies_every_step() -> None:
    done = await run("demo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "x faster" in done.stdout
