"""The data directory: its version, what nobody needs any more, and who may read or write it.

Reads names, owners and modes, no contents; changes nothing. Blocking: for a thread.
"""

import os
import stat
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from mirror.doctor.finding import Finding, Verdict
from mirror.errors import LocalError
from mirror.layout import LAYOUT_VERSION, check_version
from mirror.places import DataDirectory

DATA: Final = "data directory"

LOOKED_AT_MAX: Final = 20_000
"""Files and directories: more would take seconds on a cold disk."""

NAMED_MAX: Final = 5

_PRIVATE: Final = frozenset({"tokens.json", "relays.db", "control.sock"})


def examine_data(data_dir: Path, is_configured: Callable[[str], bool]) -> Iterator[Finding]:
    """Look at the data directory; there is nothing to say where there is none yet.

    Args:
        data_dir: The directory.
        is_configured: Tells whether there is, or may be, a repository of a name.
    """
    if not data_dir.is_dir():
        return
    places = DataDirectory(data_dir)
    yield data_version(data_dir)
    try:
        yield left_over(places, is_configured)
        yield who_may(places)
    except OSError as error:
        advice = "run git-mirror doctor as git-mirror's user"
        words = f"can't be read: {error.strerror}"
        yield Finding(DATA, "access", Verdict.PROBLEM, words, advice)


def data_version(data_dir: Path) -> Finding:
    """Tell of which version the directory is."""
    check = "version"
    try:
        found = check_version(data_dir)
    except LocalError as error:
        words, _, advice = str(error).partition(": ")
        return Finding(DATA, check, Verdict.PROBLEM, words, advice)
    if found == LAYOUT_VERSION or found is None:
        return Finding(DATA, check, Verdict.OK, str(LAYOUT_VERSION if found else "none yet"))
    words = f"{found}, and this git-mirror writes {LAYOUT_VERSION}"
    return Finding(DATA, check, Verdict.NOTE, words, "nothing: the next start brings it up to date")


def left_over(places: DataDirectory, is_configured: Callable[[str], bool]) -> Finding:
    """Tell of mirrors that the configuration does not name any more, and of what was set aside."""
    repositories = places.repositories
    names = [str(path.relative_to(repositories).with_suffix("")) for path in _mirrors(repositories)]
    unknown = sorted(name for name in names if not is_configured(name))
    aside = sorted(path.name for path in _entries(places.set_aside))
    data: dict[str, float | int | str | None] = {
        "mirrors": len(names),
        "not_configured": len(unknown),
        "set_aside": len(aside),
    }
    found = []
    if unknown:
        found.append(f"mirrors that are not configured: {_some(unknown)}")
    if aside:
        found.append(f"set aside: {_some(aside)}")
    if not found:
        return Finding(DATA, "left over", Verdict.OK, "nothing", data=data)
    advice = []
    if unknown:
        advice.append(f"configure them again, or remove them below {repositories}")
    if aside:
        advice.append(f"look at what is in {places.set_aside}, then remove it")
    return Finding(DATA, "left over", Verdict.NOTE, "; ".join(found), "; ".join(advice), data)


def who_may(places: DataDirectory) -> Finding:
    """Tell who may read and write what should be git-mirror's alone."""
    root = places.root
    writable: list[str] = []
    readable: list[str] = []
    foreign: list[str] = []
    links: list[str] = []
    owner = _owner(root)
    for path in islice(_looked_at(places), LOOKED_AT_MAX):
        try:
            found = path.lstat()
        except FileNotFoundError:
            continue
        name = "." if path == root else str(path.relative_to(root))
        if stat.S_ISLNK(found.st_mode):
            links.append(name)
            continue
        if found.st_mode & stat.S_IWOTH:
            writable.append(name)
        is_open = path == root and found.st_mode & (stat.S_IROTH | stat.S_IXOTH)
        if is_open or (path.name in _PRIVATE and found.st_mode & 0o077):
            readable.append(name)
        if path != root and found.st_uid != owner:
            foreign.append(name)
    problems = [
        (writable, "everybody may write", f"chmod o-w; see who did in {root}"),
        (links, "links, which git-mirror never makes", "see who made them, and remove them"),
        (foreign, "of another owner", f"chown them to the owner of {root / 'lock'}"),
        (readable, "others may read", f"chmod o-rwx {root}, and 0600 for the files"),
    ]
    data: dict[str, float | int | str | None] = {
        "writable": len(writable),
        "links": len(links),
        "foreign": len(foreign),
        "readable": len(readable),
    }
    words = "; ".join(f"{what}: {_some(names)}" for names, what, _ in problems if names)
    if not words:
        return Finding(DATA, "owners and modes", Verdict.OK, "git-mirror's alone", data=data)
    advice = "; ".join(what for names, _, what in problems if names)
    is_bad = writable or links or foreign
    verdict = Verdict.PROBLEM if is_bad else Verdict.WARNING
    return Finding(DATA, "owners and modes", verdict, words, advice, data)


def _owner(root: Path) -> int:
    """Return who the service runs as: who made the lock; a volume itself may be root's."""
    try:
        return (root / "lock").lstat().st_uid
    except FileNotFoundError:
        return root.lstat().st_uid


def _looked_at(places: DataDirectory) -> Iterator[Path]:
    """Yield what is looked at: what lies at the top, and each mirror but for its objects."""
    yield places.root
    top = [path for path in _entries(places.root) if path.name != "lost+found"]
    yield from top
    for mirror in _mirrors(places.repositories):
        yield mirror
        yield from _entries(mirror)
        yield from _entries(mirror / "objects")
        yield from _entries(mirror / "objects" / "pack")


def _mirrors(place: Path) -> Iterator[Path]:
    """Yield the mirrors below a directory, whatever is in them."""
    for path in _entries(place):
        if path.is_symlink() or not path.is_dir():
            continue
        if path.suffix == ".git":
            yield path
        else:
            yield from _mirrors(path)


def _entries(place: Path) -> list[Path]:
    try:
        with os.scandir(place) as found:
            return sorted(Path(one.path) for one in found)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _some(names: list[str]) -> str:
    more = len(names) - NAMED_MAX
    return ", ".join(names[:NAMED_MAX]) + (f" and {more} more" if more > 0 else "")
