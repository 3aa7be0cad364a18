"""What a git that was killed left is cleared away, and only that."""

from mirror.repository.bare import BareRepository
from tests.repository.histories import Atlas, Scratch


def names(repository: BareRepository) -> set[str]:
    return {path.name for path in (repository.objects / "pack").iterdir()}


def test_parts_of_packs_go_and_whole_packs_stay(
    filled: BareRepository, scratch: Scratch, atlas: Atlas
) -> None:
    filled.close()
    whole, packs = names(filled), filled.objects / "pack"
    for name in ("a.rev", "b.rev", "b.idx", "c.pack", "c.rev", "d.bitmap"):
        (packs / f"pack-{name}").touch()
    (filled.path / "info").mkdir(exist_ok=True)
    (filled.path / "info" / "refs_2m8utL").touch()
    again = scratch.open()
    assert names(again) == whole
    assert not list((filled.path / "info").glob("refs_*"))
    assert again.source.contains(atlas["main"])
    again.close()


def test_an_index_over_packs_stays_while_all_of_them_are_there(
    filled: BareRepository, scratch: Scratch
) -> None:
    filled.close()
    scratch.git("multi-pack-index", "write")
    before, packs = names(filled), filled.objects / "pack"
    (packs / f"multi-pack-index-{'1' * 40}.bitmap").touch()
    scratch.open().close()
    assert names(filled) == before, "but bitmaps of another one go"


def test_an_index_over_packs_that_are_gone_goes(filled: BareRepository, scratch: Scratch) -> None:
    filled.close()
    before, packs = names(filled), filled.objects / "pack"
    scratch.git("multi-pack-index", "write")
    index = packs / "multi-pack-index"
    content = index.read_bytes()
    index.chmod(0o644)
    for damaged in (
        content.replace(b"pack-", b"gone-", 1),
        content[:20],
        b"",
        b"MIDX" + b"\xff" * 40,
    ):
        index.write_bytes(damaged)
        (packs / f"multi-pack-index-{'1' * 40}.rev").touch()
        scratch.open().close()
        assert names(filled) == before
