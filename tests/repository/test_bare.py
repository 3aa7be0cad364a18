"""The repository on disk: an ordinary one, to git as to us."""

from mirror.repository.bare import BareRepository
from mirror.repository.refs import KEPT_PREFIX, StoredRefs
from mirror.wire.names import Ref, RefName
from tests.repository.histories import MAIN, UPSTREAM_URL, Atlas, Scratch, stored


def test_a_new_mirror_is_an_empty_repository_to_git(scratch: Scratch) -> None:
    scratch.git("fsck", "--strict")
    assert scratch.git("rev-parse", "--is-bare-repository") == b"true\n"
    assert scratch.git("for-each-ref") == b""
    assert scratch.git("symbolic-ref", "HEAD") == b"refs/heads/main\n"
    assert scratch.git("config", "remote.origin.url").strip().decode() == UPSTREAM_URL
    repository = scratch.open()
    assert repository.upstream_url == UPSTREAM_URL
    assert repository.read_refs() == stored()
    assert repository.pack_files() == []
    assert repository.bytes_on_disk() == 0
    repository.close()


def test_git_reads_the_refs_that_we_write(
    filled: BareRepository, scratch: Scratch, atlas: Atlas
) -> None:
    refs = stored(
        Ref(MAIN, atlas["main"]),
        Ref(RefName(b"refs/heads/\xc3\xa5"), atlas["diverged"]),
        Ref(RefName(b"refs/tags/v1"), atlas["tag"], atlas["crossed"]),
        Ref(RefName(b"refs/tags/v1.1"), atlas["nested-tag"], atlas["crossed"]),
        Ref(RefName(b"refs/tags/light"), atlas["left"]),
        Ref(RefName(b"refs/tags/tree"), atlas["tree"]),
    )
    filled.write_refs(refs)
    listed = dict(
        line.split(b" ")[::-1]
        for line in scratch.git("for-each-ref", "--format=%(objectname) %(refname)").splitlines()
    )
    assert listed == {name: ref.oid for name, ref in refs.refs.items()}
    assert scratch.git("rev-parse", "HEAD").strip() == atlas["main"]
    assert scratch.git("rev-parse", "refs/tags/v1.1^{}").strip() == atlas["crossed"]
    assert b"refs/tags/v1^{}" in scratch.git("show-ref", "-d")
    scratch.git("fsck", "--strict")
    assert filled.read_refs() == refs
    filled.close()


def test_what_is_written_is_read_back_also_after_opening_anew(
    filled: BareRepository, atlas: Atlas
) -> None:
    for refs in (
        stored(Ref(MAIN, atlas["main"])),
        stored(Ref(RefName(b"refs/heads/x"), atlas["root"]), head=RefName(b"refs/heads/x")),
        stored(head=RefName(b"refs/heads/unborn")),
        StoredRefs({MAIN: Ref(MAIN, atlas["main"])}, None, atlas["left"]),
        stored(Ref(MAIN, atlas["main"]), kept={atlas["diverged"]: 1_800_000_000, atlas["tag"]: 5}),
        stored(Ref(MAIN, atlas["main"]), kept={atlas["diverged"]: 1_800_000_001}),
        stored(
            Ref(RefName(b"refs/changes/1"), atlas["root"]),  # before ours in the file, not after
            Ref(MAIN, atlas["main"]),
            kept={atlas["diverged"]: 1_800_000_001, atlas["left"]: 7},
        ),
    ):
        filled.write_refs(refs)
        assert filled.read_refs() == refs
        again = BareRepository.open(filled.path)
        assert again.read_refs() == refs
        again.close()
    filled.close()


def test_a_detached_head_is_one_for_git_too(
    filled: BareRepository, scratch: Scratch, atlas: Atlas
) -> None:
    filled.write_refs(StoredRefs({MAIN: Ref(MAIN, atlas["main"])}, None, atlas["left"]))
    assert scratch.git("rev-parse", "HEAD").strip() == atlas["left"]
    assert not scratch.succeeds("symbolic-ref", "-q", "HEAD")
    scratch.git("fsck", "--strict")
    filled.write_refs(stored(Ref(MAIN, atlas["main"])))
    assert scratch.git("symbolic-ref", "HEAD") == b"refs/heads/main\n"
    filled.close()


def test_old_tips_are_kept_under_names_that_say_until_when(
    filled: BareRepository, scratch: Scratch, atlas: Atlas
) -> None:
    filled.write_refs(stored(Ref(MAIN, atlas["main"]), kept={atlas["diverged"]: 1_800_000_000}))
    name = (KEPT_PREFIX + b"1800000000/" + atlas["diverged"]).decode()
    assert scratch.oid(name) == atlas["diverged"]
    refs = filled.read_refs()
    assert set(refs.refs) == {MAIN}
    assert refs.kept == {atlas["diverged"]: 1_800_000_000}
    filled.close()


def test_refs_that_git_has_packed_are_read(atlas: Atlas) -> None:
    repository = atlas.scratch.open()
    refs = repository.read_refs().refs
    rows = atlas.scratch.git("for-each-ref", "--format=%(refname) %(objectname) %(*objectname)")
    listed = {tuple(line.split(b" ")) for line in rows.splitlines()}
    assert {(ref.name, ref.oid) for ref in refs.values()} == {row[:2] for row in listed}
    # git's own listing peels one tag off a tag of a tag; the file holds what is at the bottom.
    nested = refs[RefName(b"refs/tags/nested-tag")]
    assert nested.peeled == atlas["crossed"]
    repository.close()


def test_who_opens_it_beside_its_writer_leaves_the_work_of_that_one_alone(
    filled: BareRepository, atlas: Atlas
) -> None:
    filled.write_refs(stored(Ref(MAIN, atlas["main"])))
    with filled.quarantine() as quarantine:
        quarantine.received.write_bytes(b"half of a pack")
        beside = BareRepository.open_beside(filled.path)
        assert quarantine.received.exists()
        assert beside.read_refs() == filled.read_refs()
        assert beside.upstream_url == filled.upstream_url
        assert beside.source.contains(atlas["main"])
        beside.close()
