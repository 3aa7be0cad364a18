"""Whether the service on this machine answers: `python -m mirror.health [CONTROL_SOCKET]`.

For the health check of a container, which runs every few seconds and must cost next to nothing: it
imports no other module of this package. Asks by the control socket, so that neither the address nor
TLS nor who may read matters. Exit code 0 if the service answers, else 1 with a line that says why.
"""

import socket
import sys
from typing import Final

CONTROL: Final = "/var/lib/git-mirror/control.sock"
"""Where it is with the `data_dir` of the default configuration."""

SECONDS_MAX: Final = 2.0

ANSWER_BYTES_MAX: Final = 1024
"""The status line is all that counts."""


def ask(path: str) -> str | None:
    """Ask the service at a control socket; returns what is wrong, `None` for nothing."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(SECONDS_MAX)
            connection.connect(path)
            connection.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            status = connection.recv(ANSWER_BYTES_MAX).split(b"\r\n", 1)[0]
    except OSError as error:
        return f"{path}: {error.strerror or error}"
    if status.split(b" ")[1:2] != [b"200"]:
        return f"{path}: {status.decode('ascii', 'replace') or 'no answer'}"
    return None


if __name__ == "__main__":
    sys.exit(ask(*sys.argv[1:2] or [CONTROL]))
