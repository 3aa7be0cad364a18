import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from mirror.errors import LocalError
from mirror.refresh.relay.ledger import Ledger
from tests.refresh.relay.tables import name, oid, table

KEY = ("argocd", "acme/app")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "aside").mkdir()
    return tmp_path / "relays.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    opened = open_ledger(path)
    yield opened
    opened.close()


def open_ledger(path: Path) -> Ledger:
    return Ledger.open(path, set_aside=path.parent / "aside")


def test_what_was_noted_is_there_after_a_restart_that_nobody_prepared(
    ledger: Ledger, path: Path
) -> None:
    ledger.begin(*KEY, table(main=1, old=2).values())
    ledger.record(*KEY, {name("main"): oid(3), name("old"): None, name("new"): oid(4)}, 7)
    other = open_ledger(path)  # while the first is open, as after kill -9
    found = other.load(*KEY)
    other.close()
    assert found is not None
    assert (found.refs, found.number) == (table(main=3, new=4), 7)


def test_a_receiver_that_was_told_nothing_yet_differs_from_one_that_knows_no_refs(
    ledger: Ledger,
) -> None:
    assert ledger.load(*KEY) is None
    ledger.begin(*KEY, [])
    found = ledger.load(*KEY)
    assert found is not None
    assert (len(found.refs), found.number) == (0, 0)


def test_without_a_number_the_number_stays(ledger: Ledger) -> None:
    ledger.begin(*KEY, [])
    ledger.record(*KEY, {name("a"): oid(1)}, 5)
    ledger.record(*KEY, {name("b"): oid(1)})
    found = ledger.load(*KEY)
    assert found is not None
    assert found.number == 5


def test_what_never_began_is_not_noted_in_part(ledger: Ledger) -> None:
    ledger.record(*KEY, {name("a"): oid(1)}, 5)
    assert ledger.load(*KEY) is None


def test_what_is_not_configured_any_longer_is_forgotten(ledger: Ledger) -> None:
    gone = ("fleet", "acme/app")
    ledger.begin(*KEY, table(main=1).values())
    ledger.begin(*gone, table(main=1).values())
    ledger.keep_only({KEY})
    assert ledger.load(*gone) is None
    found = ledger.load(*KEY)
    assert found is not None
    assert found.refs == table(main=1)


def test_only_the_service_itself_can_read_it(ledger: Ledger, path: Path) -> None:
    ledger.begin(*KEY, [])
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [b"not a database" * 100, b""])
def test_a_damaged_file_is_set_aside_and_everything_begins_anew(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with capture_logs() as logs:
        ledger = open_ledger(path)
    assert ledger.load(*KEY) is None
    ledger.begin(*KEY, [])
    ledger.close()
    aside = list((path.parent / "aside").iterdir())
    assert [file.read_bytes() for file in aside] == ([content] if content else [])
    assert [log["event"] for log in logs] == (["relay_ledger_set_aside"] if content else [])


def test_pages_that_were_overwritten_are_found(path: Path) -> None:
    ledger = open_ledger(path)
    ledger.begin(*KEY, table(**{f"b{number}": number + 1 for number in range(500)}).values())
    ledger.close()
    content = bytearray(path.read_bytes())
    content[8192:12288] = b"\xaa" * 4096
    path.write_bytes(content)
    with capture_logs():
        ledger = open_ledger(path)
    assert ledger.load(*KEY) is None
    ledger.close()


def test_whatever_bit_flips_it_opens_and_says_what_can_be_or_begins_anew(path: Path) -> None:
    right = table(**{f"b{number}": number + 1 for number in range(100)})
    ledger = open_ledger(path)
    ledger.begin(*KEY, right.values())
    ledger.begin("fleet", "acme/app", right.values())
    ledger.close()
    content = path.read_bytes()
    chance = random.Random(1)
    found, unseen = 0, 0
    # Of the header and of the rest, of which most is empty.
    bits = [*range(0, 100 * 8, 11), *(chance.randrange(8 * len(content)) for _ in range(60))]
    for bit in bits:
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        for end in ("-wal", "-shm"):
            path.with_name(f"relays.db{end}").unlink(missing_ok=True)
        path.write_bytes(flipped)
        with capture_logs():
            opened = open_ledger(path)
        known = opened.load(*KEY)
        if opened.is_anew:
            found += 1
            assert known is None
        else:  # at most one of all is another one
            assert known is not None, bit
            unseen += known.refs != right
            same = [ref for ref in right.values() if known.refs.get(ref.name) == ref]
            assert len(same) >= len(right) - 1, bit
        opened.close()
    assert found > 10
    assert unseen < 40


def test_a_place_that_can_not_be_used_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match=r"missing/relays\.db can't be opened"):
        Ledger.open(tmp_path / "missing" / "relays.db", set_aside=tmp_path)


def test_two_pairs_are_apart(ledger: Ledger) -> None:
    ledger.begin("a", "x", table(main=1).values())
    ledger.begin("b", "x", table(main=2).values())
    ledger.record("a", "x", {name("main"): oid(9)}, 1)
    found = ledger.load("b", "x")
    assert found is not None
    assert found.refs == table(main=2)
    with pytest.raises(sqlite3.IntegrityError):
        ledger.begin("a", "x", [])
