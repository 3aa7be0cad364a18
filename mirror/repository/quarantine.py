"""Where a pack is received and checked before its objects count, as git does it."""

from pathlib import Path
from typing import TYPE_CHECKING

from mirror.durable import fsync_directory
from mirror.errors import LocalError
from mirror.repository.objects import ObjectSource

if TYPE_CHECKING:
    from mirror.repository.bare import BareRepository


class Quarantine:
    """A place where a pack is received and checked before its objects count as the repository's."""

    def __init__(self, repository: "BareRepository", objects: Path) -> None:
        self.repository = repository
        self.objects = objects
        self.received = objects / "received.pack"
        """Where to write the pack as it comes from the upstream."""

    def source(self) -> ObjectSource:
        """Return what was received and indexed, with the repository's objects behind it.

        Raises:
            LocalError: A pack can't be read.
        """
        return ObjectSource(self.objects, behind=self.repository.source)

    def bytes_on_disk(self) -> int:
        """Return the size of the packs that were indexed, with their indexes."""
        return sum(file.stat().st_size for file in (self.objects / "pack").iterdir())

    def migrate(self) -> None:
        """Move the indexed packs into the repository, durably: all of them or none.

        An index goes last: it makes its pack visible. A pack that is there already stays as it is,
        for it may be read at this moment; dulwich names packs by the objects in them, not by their
        bytes.

        Raises:
            LocalError: They could not be moved.
        """
        target = self.repository.objects / "pack"
        moved: list[Path] = []
        try:
            for index in sorted((self.objects / "pack").glob("pack-*.idx")):
                if all(
                    (target / index.name).with_suffix(end).exists() for end in (".pack", ".idx")
                ):
                    continue
                for end in (".pack", ".rev", ".idx"):
                    file = index.with_suffix(end)
                    if file.exists():
                        file.rename(target / file.name)
                        moved.append(target / file.name)
            fsync_directory(target)
        except OSError as error:
            for file in reversed(moved):
                file.unlink(missing_ok=True)
            raise LocalError(f"can't add a pack to {target}: {error.strerror}") from error
        self.repository.source.rescan()
