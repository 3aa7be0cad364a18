import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.errors import RequestRefused
from mirror.wire.filters import COMBINED_FILTERS_MAX, ObjectFilter, parse_filter
from tests.git_client import Upstream
from tests.wire import strategies
from tests.wire.strategies import GARBAGE_EXAMPLES, refuses_only_with_protocol_error

BLOBS = frozenset({b"blob"})
NO_TYPE: frozenset[bytes] = frozenset()


@pytest.mark.parametrize(
    ("spec", "expected", "canonical"),
    [
        (b"blob:none", ObjectFilter(blob_limit_bytes=0), b"blob:limit=0"),
        (b"blob:limit=100", ObjectFilter(blob_limit_bytes=100), b"blob:limit=100"),
        (b"blob:limit=1k", ObjectFilter(blob_limit_bytes=1024), b"blob:limit=1024"),
        (b"blob:limit=2M", ObjectFilter(blob_limit_bytes=2 << 20), b"blob:limit=2097152"),
        (b"blob:limit=1g", ObjectFilter(blob_limit_bytes=1 << 30), b"blob:limit=1073741824"),
        (b"tree:0", ObjectFilter(tree_depth=0), b"tree:0"),
        (b"tree:007", ObjectFilter(tree_depth=7), b"tree:7"),
        (b"object:type=blob", ObjectFilter(object_types=BLOBS), b"object:type=blob"),
        (
            b"combine:blob:none+tree:3",
            ObjectFilter(blob_limit_bytes=0, tree_depth=3),
            b"combine:blob:limit%3d0+tree:3",
        ),
        (b"combine:tree:5+tree:2", ObjectFilter(tree_depth=2), b"tree:2"),
        (
            b"combine:blob:limit=10+blob:limit=20+tree%3A1",
            ObjectFilter(blob_limit_bytes=10, tree_depth=1),
            b"combine:blob:limit%3d10+tree:1",
        ),
        (
            b"combine:object%3atype%3Dblob+blob:none",
            ObjectFilter(blob_limit_bytes=0, object_types=BLOBS),
            b"combine:blob:limit%3d0+object:type%3dblob",
        ),
        (
            b"combine:object:type=tree+object:type=tag",
            ObjectFilter(object_types=NO_TYPE),
            b"combine:object:type%3dblob+object:type%3dcommit",
        ),
        (b"combine:blob:none", ObjectFilter(blob_limit_bytes=0), b"blob:limit=0"),
        (b"combine:+blob:none++", ObjectFilter(blob_limit_bytes=0), b"blob:limit=0"),
        (b"blob:limit=0x10k", ObjectFilter(blob_limit_bytes=16 << 10), b"blob:limit=16384"),
        (b"tree:010", ObjectFilter(tree_depth=8), b"tree:8"),
        (b"tree:1k", ObjectFilter(tree_depth=1024), b"tree:1024"),
        (b"combine:combine%3Atree:1%2btree%253a2", ObjectFilter(tree_depth=1), b"tree:1"),
        (
            b"combine:combine:combine%3atree:3%2bblob:none+tree:4",
            ObjectFilter(blob_limit_bytes=0, tree_depth=3),
            b"combine:blob:limit%3d0+tree:3",
        ),
    ],
)
def test_a_filter_spec_is_read_and_has_one_canonical_form(
    spec: bytes, expected: ObjectFilter, canonical: bytes
) -> None:
    assert parse_filter(spec) == expected
    assert expected.spec() == canonical


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        *((spec, "invalid filter-spec") for spec in (b"", b"blob", b"blob:", b"other", b"auto")),
        *((b"blob:limit=%b" % size, "invalid filter-spec") for size in (b"", b"-1", b"1t", b"1\n")),
        (b"blob:limit=99999999999999999999", "invalid filter-spec"),
        (b"blob:limit=18014398509481984k", "invalid filter-spec"),
        *((b"tree:%b" % depth, "expected 'tree:<depth>'") for depth in (b"", b"-1", b"\xd9\xa3")),
        (b"object:type=note", "'note' for 'object:type=<type>' is not a valid object type"),
        (b"object:type", "invalid filter-spec"),
        (b"combine:", "expected something after combine:"),
        (b"combine:++", "expected something after combine:"),
        (b"combine:tree%253a1", "invalid filter-spec 'tree%3a1'"),
        *((b"combine:tree:1%b" % bad, "must escape char") for bad in (b"~", b" ", b"\xc3", b'"')),
        (b"combine:combine%3atree:1%2btree:2~", "must escape char in sub-filter-spec: '~'"),
        (b"sparse:path=x", "sparse:path filters support has been dropped"),
        (b"sparse:oid=main:x", "filter 'sparse:oid' not supported; use blob:none and a sparse"),
        (b"combine:sparse:oid=a+blob:none", "filter 'sparse:oid' not supported"),
    ],
)
def test_what_is_no_filter_spec_is_refused(spec: bytes, message: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        parse_filter(spec)
    assert message in str(refused.value)


def test_only_so_many_filters_are_combined() -> None:
    most = b"combine:" + b"+".join([b"tree:1"] * COMBINED_FILTERS_MAX)
    assert parse_filter(most) == ObjectFilter(tree_depth=1)
    nested = [b"%3a".join([b"combine"] * 2 + [b"tree"]) + b"%3a1%2btree:1"] * 9
    for more in (most + b"+tree:1", b"combine:" + b"+".join(nested)):
        with pytest.raises(RequestRefused, match="more than 16 filters combined"):
            parse_filter(more)
    with pytest.raises(RequestRefused, match="more than 16 layers deep"):
        parse_filter(b"combine:" * 5000 + b"tree:1")


@given(strategies.filters)
def test_a_filter_that_is_written_reads_as_the_same(chosen: ObjectFilter) -> None:
    assert parse_filter(chosen.spec()) == chosen


@given(strategies.filters)
def test_each_spec_of_a_filter_is_a_filter_of_its_own(chosen: ObjectFilter) -> None:
    together = b"combine:" + b"+".join(chosen.specs())
    assert parse_filter(together) == chosen


@settings(max_examples=GARBAGE_EXAMPLES)
@given(
    st.one_of(
        st.binary(max_size=40),
        st.builds(
            b":".join,
            st.lists(
                st.sampled_from([b"combine", b"blob", b"tree", b"limit=1k", b"none", b"+", b"%3a"])
                | st.binary(max_size=3),
                max_size=6,
            ),
        ),
        strategies.edited(strategies.filters.map(ObjectFilter.spec)),
    )
)
def test_garbage_is_a_filter_or_refused(spec: bytes) -> None:
    refuses_only_with_protocol_error(lambda: parse_filter(spec))


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Upstream:
    upstream = Upstream(tmp_path_factory.mktemp("forge"))
    upstream.commit(files={"a/b/deep.txt": "x" * 2000, "a/small.txt": "y", "empty": ""})
    upstream.tag("v1")
    return upstream


@pytest.mark.parametrize(
    "spec",
    [
        *("blob:none", "blob:limit=1", "blob:limit=1k", "blob:limit=2000", "blob:limit=2001"),
        *("tree:0", "tree:1", "tree:2", "object:type=blob", "object:type=tag"),
        *("combine:tree:3+blob:limit=1k", "combine:object:type=tree+tree:2"),
        *("combine:object:type=tree+object:type=commit",),
    ],
)
def test_git_takes_the_canonical_form_for_the_same_filter(history: Upstream, spec: str) -> None:
    def listed(*specs: str) -> str:
        options = [f"--filter={spec}" for spec in specs]
        walk = ("rev-list", "--objects", "--filter-provided-objects", "--all")
        return history.git(*walk, *options)

    chosen = parse_filter(spec.encode())
    expected = listed(spec)
    assert listed(chosen.spec().decode()) == expected
    assert listed(*(part.decode() for part in chosen.specs())) == expected
