"""What the mirror is compared with: nginx as fair as we can set it up, and git's own server.

One nginx with one worker serves files below `/static/`, and repositories through fcgiwrap and
`git http-backend`. The mirror uses the same one as its upstream.
"""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.git import ENVIRONMENT, exec_path
from benchmarks.http_client import Request
from benchmarks.processes import free_port, is_listening, running, wait_until
from benchmarks.protocol import V2
from benchmarks.tools import path_of

FCGIWRAP_PROCESSES: Final = 8
"""Requests that http-backend answers at once; more of them only wait for two cores."""

NGINX: Final = """\
user root;
worker_processes 1;
daemon off;
pid {directory}/nginx.pid;
error_log stderr error;
events {{
  worker_connections 4096;
}}
http {{
  access_log off;
  sendfile on;
  tcp_nodelay on;
  keepalive_timeout 75s;
  keepalive_requests 1000000000;
  gzip off;
  default_type application/x-git-upload-pack-result;
  client_max_body_size 0;
  client_body_temp_path {directory}/body;
  fastcgi_temp_path {directory}/fastcgi;
  proxy_temp_path {directory}/proxy;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  fastcgi_max_temp_file_size 0;
  fastcgi_read_timeout 600s;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location /static/ {{
      root {directory};
    }}
    # Many repositories in name, one on disk: upstreams of the growth row.
    location ~ ^/many/[^/]+\\.git(?<rest>/.*)$ {{
      set $path /many.git$rest;
      include {directory}/http-backend.conf;
    }}
    location / {{
      set $path $uri;
      include {directory}/http-backend.conf;
    }}
  }}
}}
"""
HTTP_BACKEND: Final = """\
fastcgi_pass unix:{directory}/fcgiwrap.sock;
fastcgi_param SCRIPT_FILENAME {program};
fastcgi_param GIT_PROJECT_ROOT {root};
fastcgi_param GIT_HTTP_EXPORT_ALL 1;
fastcgi_param GIT_CONFIG_NOSYSTEM 1;
fastcgi_param GIT_CONFIG_GLOBAL /dev/null;
fastcgi_param PATH_INFO $path;
fastcgi_param QUERY_STRING $query_string;
fastcgi_param REQUEST_METHOD $request_method;
fastcgi_param CONTENT_TYPE $content_type;
fastcgi_param CONTENT_LENGTH $content_length;
fastcgi_param REMOTE_ADDR $remote_addr;
fastcgi_param SERVER_PROTOCOL $server_protocol;
"""


@dataclass(frozen=True, slots=True)
class Peer:
    """nginx with http-backend behind it.

    Attributes:
        root: Repositories put here are served, as `/<name>.git`.
        directory: Its own files.
        nginx: nginx' process; its worker is a child.
    """

    port: int
    root: Path
    directory: Path
    nginx: int

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/{name}.git"

    def processes(self) -> tuple[int, ...]:
        """Return nginx' processes."""
        workers = Path(f"/proc/{self.nginx}/task/{self.nginx}/children").read_text().split()
        return (self.nginx, *map(int, workers))

    def static(self, name: str, content: bytes) -> Request:
        """Put a file in place and return the request for it."""
        (self.directory / "static" / name).write_bytes(content)
        return Request(f"/static/{name}", headers=V2[:1])


@contextlib.contextmanager
def open_peer(directory: Path, root: Path, *, nice: int = 0) -> Iterator[Peer]:
    """Run nginx and fcgiwrap until the end of the block.

    Args:
        directory: A new directory for their files.
        root: Where the repositories stand.
        nice: How far they step back for others: as if they ran on another machine.
    """
    (directory / "static").mkdir(parents=True)
    port = free_port()
    program = exec_path() / "git-http-backend"
    (directory / "http-backend.conf").write_text(
        HTTP_BACKEND.format(directory=directory, program=program, root=root)
    )
    (directory / "nginx.conf").write_text(NGINX.format(directory=directory, port=port))
    log = directory / "peer.log"
    polite = ["nice", "-n", str(nice)] if nice else []
    # Without -f git's own stderr goes to nginx's error log, as on a server.
    cgi = [*polite, path_of("fcgiwrap") or "fcgiwrap", "-c", str(FCGIWRAP_PROCESSES)]
    web = [*polite, path_of("nginx") or "nginx", "-p", directory, "-e", "stderr"]
    with (
        running(
            [*cgi, "-s", f"unix:{directory}/fcgiwrap.sock"], log=log, environment=ENVIRONMENT
        ) as wrap,
        running([*web, "-c", directory / "nginx.conf"], log=log) as nginx,
    ):
        wait_until((directory / "fcgiwrap.sock").exists, process=wrap, log=log)
        wait_until(lambda: is_listening(port), process=nginx, log=log)
        yield Peer(port, root, directory, nginx.pid)


@contextlib.contextmanager
def far_away(port: int, *, rtt_seconds: float, log: Path) -> Iterator[int]:
    """Give the port of a line to `port` that is `rtt_seconds` long, as a process of its own."""
    arguments = [sys.executable, "-m", "benchmarks.far_line", str(port), str(rtt_seconds)]
    with running(arguments, log=log) as line:
        wait_until(lambda: log.read_text().endswith("\n"), process=line, log=log)
        yield int(log.read_text())


def upload_pack(bare: Path, body: bytes) -> bytes:
    """Have `git upload-pack` answer one request, as a server would start it."""
    return subprocess.run(
        ["git", "upload-pack", "--stateless-rpc", str(bare)],
        env=ENVIRONMENT | {"GIT_PROTOCOL": "version=2"},
        input=body,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
        timeout=600,
    ).stdout
