"""Objects by their id, whichever pack they lie in. Safe from any thread: dulwich maps packs."""

from collections.abc import Iterator
from typing import Final

from dulwich.errors import ChecksumMismatch, ObjectFormatException
from dulwich.object_store import DiskObjectStore
from dulwich.objects import ObjectID as DulwichId
from dulwich.objects import ShaFile
from dulwich.pack import Pack

from mirror.errors import LocalError
from mirror.wire.names import ObjectId

_TREE: Final = 2


class ObjectSource:
    """The objects of one object directory and its alternates."""

    def __init__(self, store: DiskObjectStore) -> None:
        self._store = store

    def contains(self, oid: ObjectId) -> bool:
        """Tell whether the object is here."""
        return DulwichId(oid) in self._store

    def parsed(self, oid: ObjectId) -> ShaFile:
        """Return the object.

        Raises:
            LocalError: It is not here, or damaged.
        """
        try:
            return self._store[DulwichId(oid)]
        except KeyError:
            raise LocalError(f"object {oid.decode()} is missing in {self._store.path}") from None
        except (ObjectFormatException, ChecksumMismatch, ValueError) as error:
            raise LocalError(f"object {oid.decode()} is damaged: {error}") from error

    def raw(self, oid: ObjectId) -> tuple[int, bytes]:
        """Return the number of the object's type and its content.

        Raises:
            LocalError: It is not here.
        """
        try:
            return self._store.get_raw(DulwichId(oid))
        except KeyError:
            raise LocalError(f"object {oid.decode()} is missing in {self._store.path}") from None

    def size(self, oid: ObjectId) -> int:
        """Return the object's size in bytes.

        Raises:
            LocalError: It is not here.
        """
        return len(self.raw(oid)[1])

    def is_tree(self, oid: ObjectId) -> bool:
        """Tell whether the object is a tree.

        Raises:
            LocalError: It is not here.
        """
        return self.raw(oid)[0] == _TREE

    def packs(self) -> list[Pack]:
        """Return the packs, those of alternates not among them."""
        return list(self._store.packs)

    def all_ids(self) -> Iterator[ObjectId]:
        """Yield the id of every object of this directory, those in several packs once."""
        seen: set[bytes] = set()
        for pack in self.packs():
            for oid in pack:
                if oid not in seen:
                    seen.add(oid)
                    yield ObjectId(oid)
