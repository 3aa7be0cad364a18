"""The configuration of a mirror on disk: for git, and of what it is a mirror.

Its first line, a comment to git, is a checksum of the others, so that no flipped bit makes it a
mirror of something else. What an operator changes there reads as damaged, and is made anew.
"""

import hashlib
import io
from pathlib import Path
from typing import Final

from dulwich.config import ConfigFile

from mirror.errors import Damaged, LocalError

_SUM: Final = b"# git-mirror "  # and the SHA-256 of what follows that line


def config_content(upstream_url: str) -> bytes:
    """Return the configuration that git reads."""
    config = ConfigFile()
    config.set((b"core",), b"repositoryformatversion", b"0")
    config.set((b"core",), b"filemode", b"true")
    config.set((b"core",), b"bare", b"true")
    config.set((b"core",), b"logAllRefUpdates", b"false")
    config.set((b"gc",), b"auto", b"0")
    config.set((b"remote", b"origin"), b"url", upstream_url.encode())
    config.set((b"remote", b"origin"), b"fetch", b"+refs/*:refs/*")
    config.set((b"remote", b"origin"), b"mirror", b"true")
    text = io.BytesIO()
    config.write_to_file(text)
    content = text.getvalue()
    return _SUM + hashlib.sha256(content).hexdigest().encode() + b"\n" + content


def upstream_url_of(path: Path) -> str:
    """Return what the repository at `path` mirrors.

    Raises:
        Damaged: Its configuration is not what was written.
        LocalError: It is not a mirror, or can't be read.
    """
    try:
        content = (path / "config").read_bytes()
        first, _, rest = content.partition(b"\n")
        if first.startswith(_SUM[:2]):  # older ones have no such line
            if first != _SUM + hashlib.sha256(rest).hexdigest().encode():
                raise Damaged(f"{path / 'config'} is damaged: its checksum is not right")
        elif not first.startswith(b"["):
            raise Damaged(f"{path / 'config'} is damaged")
        config = ConfigFile.from_file(io.BytesIO(content))
        return config.get((b"remote", b"origin"), b"url").decode()
    except FileNotFoundError as error:
        if (path / "packed-refs").exists():
            raise Damaged(f"{path / 'config'} is gone") from error
        raise LocalError(f"{path} is not a mirror: {error}") from error
    except (OSError, KeyError, ValueError) as error:
        raise LocalError(f"{path} is not a mirror: {error}") from error
