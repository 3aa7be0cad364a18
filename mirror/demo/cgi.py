"""git's http-backend as CGI children (RFC 3875, git-http-backend(1)).

Owns the children: each is started in a thread, because uvloop's own spawn would stall the loop, and
each is ended and reaped, whatever happens to the request it was for. It shares no code with the
mirror's own spawner on purpose: the tests measure the mirror against what runs here.
"""

import asyncio
import contextlib
import email.parser
import functools
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Final

from mirror.errors import LocalError

CGI_HEADERS_BYTES_MAX: Final = 256 * 1024
"""http-backend writes about 200 bytes; beyond this it is not answering as a CGI program."""

EXIT_SECONDS_MAX: Final = 5.0
"""How long a child may take to exit after its last byte, or after SIGTERM, before SIGKILL."""


class HttpBackendProgram:
    """Runs `git http-backend` over the repositories below `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._program = ""
        self._running: set[int] = set()
        self._endings: set[asyncio.Task[None]] = set()
        # Its own threads: the default executor may be full of clients that wait for our answers.
        self._threads = ThreadPoolExecutor(max_workers=8, thread_name_prefix="cgi")

    @property
    def running(self) -> frozenset[int]:
        """Process ids of the children that have not been reaped."""
        return frozenset(self._running)

    async def find(self) -> None:
        """Look for git's http-backend.

        Raises:
            LocalError: It is not on this machine.
        """
        loop = asyncio.get_running_loop()
        path = os.environ.get("PATH", os.defpath)
        self._program = await loop.run_in_executor(self._threads, _find_http_backend, path)

    async def close(self) -> None:
        """Wait until every child was reaped. Whoever runs one must have left `run` before."""
        await asyncio.gather(*self._endings, return_exceptions=True)
        await asyncio.to_thread(self._threads.shutdown)

    @contextlib.asynccontextmanager
    async def run(
        self, variables: Mapping[str, str], body: IO[bytes], errors: IO[bytes]
    ) -> AsyncIterator[asyncio.StreamReader]:
        """Start a child and give its output; on the way out it is ended and reaped.

        Args:
            variables: The request's meta-variables (RFC 3875, section 4.1).
            body: The request's body, at its beginning.
            errors: Takes what the child says on stderr.
        """
        loop = asyncio.get_running_loop()
        environment = self._environment() | dict(variables)
        # Not a pipe: uvloop closes the file of a pipe's transport twice, and in between another
        # thread may have opened a file of that number.
        near, far = socket.socketpair()
        try:
            output, writer = await asyncio.open_unix_connection(
                sock=near, limit=CGI_HEADERS_BYTES_MAX
            )
        except BaseException:  # the client has left already
            near.close()
            far.close()
            raise
        starting = loop.run_in_executor(self._threads, self._spawn, environment, body, far, errors)
        try:
            await asyncio.shield(starting)
            yield output
        finally:
            writer.close()
            # A task of its own: whoever is cancelled twice leaves no child behind.
            ending = asyncio.create_task(self._end(starting, is_done=output.at_eof()))
            self._endings.add(ending)
            ending.add_done_callback(self._endings.discard)
            await asyncio.shield(ending)

    async def _end(
        self, starting: "asyncio.Future[subprocess.Popen[bytes]]", *, is_done: bool
    ) -> None:
        """End and reap a child, also one that is only just being started."""
        child = await starting
        if not is_done:
            _signal(child, signal.SIGTERM)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._threads, self._reap, child)

    def _environment(self) -> dict[str, str]:
        """Return what is the same for every request: nothing of the user's or system's settings."""
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "LC_ALL": "C",
            "HOME": str(self._root),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_PROJECT_ROOT": str(self._root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GATEWAY_INTERFACE": "CGI/1.1",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "SERVER_SOFTWARE": "git-mirror-demo",
            "SCRIPT_NAME": "",
        }

    def _spawn(
        self, environment: dict[str, str], body: IO[bytes], output: socket.socket, errors: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        with output:  # the child has its own: ours would hide the end of the stream
            child = subprocess.Popen(
                [self._program],
                env=environment,
                cwd=self._root,
                stdin=body,
                stdout=output.fileno(),
                stderr=errors,
                process_group=0,  # http-backend has children of its own
            )
        self._running.add(child.pid)
        return child

    def _reap(self, child: subprocess.Popen[bytes]) -> None:
        try:
            child.wait(EXIT_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            _signal(child, signal.SIGKILL)
            child.wait()
        self._running.discard(child.pid)


def parse_headers(head: bytes) -> tuple[int, str, list[tuple[str, str]]]:
    """Parse a CGI answer's headers into status, reason and fields (RFC 3875, section 6.3)."""
    fields = email.parser.BytesHeaderParser().parsebytes(head)
    code, _, reason = fields.get("Status", "200 OK").partition(" ")
    return int(code), reason, [pair for pair in fields.items() if pair[0] != "Status"]


def _signal(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal the child and its own children, unless it was reaped: its group may be another's."""
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)


@functools.lru_cache(maxsize=4)
def _find_http_backend(path: str) -> str:
    """Return the program of the git that `path` leads to: asked once, a test starts many forges."""
    git = shutil.which("git", path=path) or "git"
    try:
        found = subprocess.run([git, "--exec-path"], capture_output=True, check=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise LocalError(
            "git is not on this machine: install it with apt-get install git"
        ) from error
    program = Path(found.stdout.strip()) / "git-http-backend"
    if not program.exists():
        raise LocalError(
            f"{program} is missing: install git in full (on Alpine: apk add git-daemon)"
        )
    return str(program)
