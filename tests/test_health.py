"""`python -m mirror.health`: the health check of a container."""

import asyncio
import socket
import sys
from pathlib import Path

import pytest

from mirror.demo.forge import HttpBackend
from mirror.health import ask
from tests.git_client import Upstream
from tests.mirror_service import WAIT_SECONDS_MAX, mirroring


async def test_a_service_that_runs_is_healthy_and_one_that_ended_is_not(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    async with mirroring(forge, tmp_path, names=[upstream.name]) as mirror:
        control = str(mirror.service.settings.data_dir / "control.sock")
        command = [sys.executable, "-I", "-m", "mirror.health", control]
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            while await (await asyncio.create_subprocess_exec(*command)).wait() != 0:
                pass  # it asks for 2 seconds at the most, which a busy machine may take
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    _, said = await process.communicate()
    assert process.returncode == 1
    assert said.decode().startswith(control)


@pytest.mark.parametrize(
    "answer", [b"", b"\0" * 9, b"HTTP/1.1", b"HTTP/1.1 503 Service Unavailable\r\n\r\n"]
)
async def test_any_other_answer_is_no_health(tmp_path: Path, answer: bytes) -> None:
    path = str(tmp_path / "control.sock")

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_unix_server(say, path):
        wrong = await asyncio.to_thread(ask, path)
    assert wrong is not None
    assert wrong.startswith(path)


def test_a_socket_that_never_answers_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mirror.health.SECONDS_MAX", 0.05)
    path = str(tmp_path / "control.sock")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        assert ask(path) == f"{path}: timed out"
