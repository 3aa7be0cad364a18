"""What must be true of a data directory: every file is explained, every mirror is whole."""

import hashlib
import os
import re
import subprocess
from pathlib import Path
from typing import Final

from tests.git_client import environment

_UNBORN: Final = "notice: HEAD points to an unborn branch"
_HEX: Final = "[0-9a-f]"
_MIRROR: Final = rf"""
    HEAD|config|description|packed-refs|git-mirror-(?:refs|confirmed|missed|read|scrubbed|unreachable)
    |(?:info|hooks|branches)(?:/[a-z.-]+)?|refs(?:/heads|/tags)?
    |objects(?:/info|/pack)?|objects/info/(?:commit-graph|packs)|info/refs
    |objects/info/commit-graphs(?:/commit-graph-chain|/graph-{_HEX}{{40}}\.graph)?
    |objects/pack/pack-{_HEX}{{40}}\.(?:pack|idx|rev|bitmap|mtimes)
    |objects/pack/multi-pack-index(?:-{_HEX}{{40}}\.(?:bitmap|rev))?
"""
_EXPLAINED: Final = re.compile(
    rf"""
    lock|version|tokens\.json(?:\.lock)?|control\.sock|relays\.db(?:-wal|-shm)?
    |staging|trash|set-aside|repositories(?:/[^/]+(?<!\.git))*
    |repositories/(?:[^/]+/)*[^/]+\.git(?:/(?:{_MIRROR}))?
    |packs(?:/tmp|/{_HEX}{{2}}(?:/{_HEX}{{40}})?)?
    |lfs(?:/objects|/tmp|/grants)?|lfs/objects/{_HEX}{{2}}(?:/{_HEX}{{2}}(?:/{_HEX}{{64}})?)?
    |lfs/grants/(?:[^/]+/)*[^/]+(?:\.git(?:/{_HEX}{{16}}(?:/{_HEX}{{2}}(?:/{_HEX}{{64}})?)?)?)?
    |bundles(?:/[^/]+(?:/list\.json|/[0-9]+-{_HEX}{{64}}\.bundle)?)?
    """,
    re.VERBOSE,
)


def unexplained(data: Path, before: float) -> list[str]:
    """Return what there is from before a time (of a start) that `mirror/places.py` can't explain.

    What is younger may be work of this moment.
    """
    found = []
    for directory, names, files in os.walk(data):
        for path in (Path(directory, name) for name in (*names, *files)):
            name = str(path.relative_to(data))
            try:
                is_old = path.lstat().st_ctime < before
            except FileNotFoundError:
                continue
            if is_old and not (_EXPLAINED.fullmatch(name) and _is_whole_pack(path)):
                found.append(name)
    return sorted(found)


def _is_whole_pack(path: Path) -> bool:
    """Tell whether a file of a pack has those that belong to it."""
    if path.parent.name != "pack" or not path.name.startswith("pack-"):
        return True
    return all(path.with_suffix(end).exists() for end in (".pack", ".idx"))


def mirrors(data: Path) -> list[Path]:
    """Return all mirrors."""
    return [path.parent for path in (data / "repositories").rglob("packed-refs")]


def fsck(mirror: Path) -> str:
    """Return what git has to say against a mirror: nothing, if it is whole."""
    found = []
    for options in (["--connectivity-only"], ["--full"]):
        ran = subprocess.run(
            ["git", "fsck", "--strict", "--no-dangling", "--no-progress", *options],
            cwd=mirror,
            env=environment(mirror),
            capture_output=True,
            check=False,
            text=True,
        )
        # Between the refs and HEAD, which follows them, HEAD can name a branch that is gone.
        said = [
            line for line in (ran.stdout + ran.stderr).splitlines() if not line.startswith(_UNBORN)
        ]
        if ran.returncode or said:
            found.append(f"git fsck {options[0]}: {ran.returncode} {ran.stdout} {ran.stderr}")
    return "; ".join(found)


def damaged_objects(data: Path) -> list[str]:
    """Return the LFS objects that are not what their name says."""
    objects = (data / "lfs" / "objects").glob("*/*/*")
    return [
        str(path) for path in objects if hashlib.sha256(path.read_bytes()).hexdigest() != path.name
    ]
