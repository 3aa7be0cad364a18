"""Each judge of a soak finds what it is there for, and nothing in what is right."""

import io
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from dulwich.object_format import SHA1
from dulwich.objects import Blob, Commit, ShaFile, Tree
from dulwich.pack import write_pack_objects

from tests.mirror_service import ZERO_ID
from tests.soak import hastened
from tests.soak.judges import (
    MAIN,
    Hearing,
    Watch,
    log_mistake,
    pack_mistakes,
    refusal_mistake,
    words_of_damage,
)
from tests.soak.ledger import TAIL_SECONDS, Conditions, Ledger, Trouble
from tests.soak.resources import (
    Sample,
    bytes_by_kind,
    calm_mistakes,
    disk_mistakes,
    leftovers,
    memory_mistakes,
    tree_of,
    zombie_mistakes,
)

BRANCH = "refs/heads/b"


def watch() -> Watch:
    """Main went from `a` over `b` to `c`, and back to `a`; the branch came and went."""
    found = Watch()
    for oid in ("a", "b", "c", "a"):
        found.history.record(MAIN, oid)
    for oid in ("x", ZERO_ID):
        found.history.record(BRANCH, oid)
    return found


def see(one: Watch, refs: dict[str, str], *, is_stale: bool = False) -> list[str]:
    return list(one.judge(one.ask(), refs, is_stale=is_stale))


# --- refs ----------------------------------------------------------------------------------------


def test_refs_that_follow_the_upstream_are_right() -> None:
    one = watch()
    assert see(one, {"HEAD": "a", MAIN: "a"}) == []
    assert see(one, {"HEAD": "b", MAIN: "b", BRANCH: "x"}) == []
    assert see(one, {MAIN: "a"}) == []


def test_an_older_tip_is_found_whoever_saw_the_newer_one() -> None:
    one = watch()
    assert see(one, {MAIN: "c"}) == []
    assert see(one, {MAIN: "b"}) == [f"{MAIN} went back to number 2 from 3"]


def test_an_older_tip_is_right_for_who_asked_before_the_newer_one_was_shown() -> None:
    one = watch()
    asked = one.ask()
    assert see(one, {MAIN: "c"}) == []
    assert list(one.judge(asked, {MAIN: "b"}, is_stale=False)) == []


@pytest.mark.parametrize(
    ("refs", "words"),
    [
        ({}, "main is not there"),
        ({BRANCH: "x"}, "main is not there"),
        ({MAIN: "z"}, "went back to z (unknown)"),
        ({MAIN: "c", "refs/heads/other": "x"}, "refs/heads/other went back to x (unknown)"),
        ({MAIN: "c", "HEAD": "b"}, "HEAD is b, and main is c"),
        ({MAIN: "c", BRANCH: "c"}, f"{BRANCH} went back to c (unknown)"),
    ],
)
def test_refs_that_the_upstream_never_had_are_found(refs: dict[str, str], words: str) -> None:
    assert words in "\n".join(see(watch(), refs))


def test_what_is_older_than_an_accepted_webhook_is_found_unless_it_is_marked() -> None:
    one = watch()
    one.raise_floor(MAIN, 3)
    assert see(one, {MAIN: "b"}, is_stale=True) == []
    assert "not marked as stale, after the webhook of 3" in see(one, {MAIN: "b"})[0]
    assert see(one, {MAIN: "c"}) == []


def test_a_branch_that_vanishes_before_it_is_deleted_is_found() -> None:
    one = Watch()
    one.history.record(MAIN, "a")
    one.history.record(BRANCH, "x")
    assert see(one, {MAIN: "a", BRANCH: "x"}) == []
    assert see(one, {MAIN: "a"}) == [f"{BRANCH} went back to number 0 from 1"]


# --- events --------------------------------------------------------------------------------------


def test_an_event_binds_all_readers_from_then_on() -> None:
    one = watch()
    assert list(one.judge_told(MAIN, "c")) == []
    assert see(one, {MAIN: "b"}) == [f"{MAIN} went back to number 2 from 3"]
    assert list(one.judge_told(MAIN, "z")) == [f"told that {MAIN} is z, which it never was"]


def test_a_receiver_is_told_in_order_and_in_the_end_of_everything() -> None:
    one = Watch()
    one.history.record(MAIN, "a")
    hearing = Hearing(one)
    for oid in ("b", "c"):
        one.history.record(MAIN, oid)
    assert list(hearing.hear(MAIN, "b", 1)) == []
    assert hearing.missing() == [f"{MAIN} is c, it knows b"]
    assert list(hearing.hear(MAIN, "c", 1)) == []
    assert hearing.missing() == []
    assert list(hearing.hear(MAIN, "b", 1)) == [
        f"told that {MAIN} is number 2, after it was told of 3"
    ]
    assert list(hearing.hear(MAIN, "b", 2)) == [], "once more after a restart"


# --- packs ---------------------------------------------------------------------------------------


def _objects() -> tuple[Commit, Tree, Blob]:
    blob = Blob.from_string(b"image: web\n")
    tree = Tree()
    tree.add(b"app.yaml", 0o100644, blob.id)
    commit = Commit()
    commit.tree = tree.id
    commit.author = commit.committer = b"Test <test@example.com>"
    commit.author_time = commit.commit_time = 1_750_000_000
    commit.author_timezone = commit.commit_timezone = 0
    commit.message = b"Begin"
    return commit, tree, blob


def _pack(objects: Sequence[ShaFile]) -> bytes:
    file = io.BytesIO()
    write_pack_objects(file, objects, object_format=SHA1)
    return file.getvalue()


def test_a_whole_pack_is_right() -> None:
    objects = _objects()
    assert list(pack_mistakes(_pack(objects), [objects[0].id.decode()])) == []


@pytest.mark.parametrize("left_out", range(3))
def test_a_pack_that_lacks_an_object_is_found(left_out: int) -> None:
    objects = list(_objects())
    want = objects[0].id.decode()
    missing = objects.pop(left_out).id.decode()
    (found,) = pack_mistakes(_pack(objects), [want])
    assert missing in found


def test_a_pack_with_another_byte_is_found_wherever_that_is() -> None:
    objects = _objects()
    pack = bytearray(_pack(objects))
    for at in range(len(pack)):
        pack[at] ^= 1
        assert list(pack_mistakes(bytes(pack), [objects[0].id.decode()])), f"byte {at}"
        pack[at] ^= 1


def test_a_pack_that_was_cut_is_found() -> None:
    objects = _objects()
    pack = _pack(objects)
    for size in range(len(pack)):
        assert list(pack_mistakes(pack[:size], [objects[0].id.decode()])), f"{size} bytes"


# --- answers and the log -------------------------------------------------------------------------


def test_only_errors_of_the_allowed_kind_are_right() -> None:
    assert refusal_mistake(503, {"Retry-After": "1"}, {503}) is None
    assert refusal_mistake(401, {}, {401, 429}) is None
    assert refusal_mistake(503, {}, {503}) == "answered 503 without Retry-After"
    assert refusal_mistake(500, {}, {503}) == "answered 500"
    assert refusal_mistake(404, {}, ()) == "answered 404"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"event": "published", "level": "info"}\n', None),
        ('{"event": "refresh_failed", "level": "warning"}\n', None),
        ('{"event": "worker_ended", "level": "error"}\n', None),
        ('{"event": "refresh_broke", "level": "error"}\n', "nothing explains"),
        ('{"event": "x", "level": "info", "exception": "Traceback ..."}\n', "nothing explains"),
        ("Traceback (most recent call last):\n", "not JSON"),
        ('["event"]\n', "not JSON"),
        ('{"level": "info"}\n', "not JSON"),
        ('{"event": "published", "url": "http://any:gmt_x@host"}\n', "a secret is in the log"),
    ],
)
def test_a_line_of_the_log_that_nothing_explains_is_found(line: str, words: str | None) -> None:
    found = log_mistake(line, ["gmt_x"], lambda event: event["event"] == "worker_ended")
    assert found is None if words is None else words in str(found)


def test_half_a_line_is_explained_by_a_kill() -> None:
    assert log_mistake('{"eve', [], lambda event: event["event"] == "no JSON") is None


def test_a_trouble_explains_what_overlaps_it_and_what_comes_soon_after() -> None:
    now = 100.0
    conditions = Conditions(lambda: now)
    assert not conditions.explain(0, Trouble.WORKER)
    with conditions.during(Trouble.WORKER):
        assert conditions.explain(now, Trouble.WORKER, Trouble.SERVICE)
        assert not conditions.explain(now, Trouble.SERVICE)
    now += 1000
    assert conditions.explain(100, Trouble.WORKER), "it was under way"
    assert conditions.explain(100 + TAIL_SECONDS[Trouble.WORKER], Trouble.WORKER)
    assert not conditions.explain(101 + TAIL_SECONDS[Trouble.WORKER], Trouble.WORKER)


def test_damage_of_one_repository_explains_nothing_of_another() -> None:
    now = 100.0
    conditions = Conditions(lambda: now)
    with conditions.during(Trouble.DAMAGE, of="acme/app"):
        assert conditions.explain(now, Trouble.DAMAGE, of="acme/app")
        assert not conditions.explain(now, Trouble.DAMAGE, of="acme/lfs")
        assert not conditions.explain(now, Trouble.DAMAGE)
    conditions.note(Trouble.MACHINE)
    assert conditions.explain(now, Trouble.MACHINE, of="acme/lfs"), "with everything"


def test_a_client_that_found_damage_by_itself_was_served_it() -> None:
    assert words_of_damage("fatal: early EOF\nfatal: inflate returned -3") == ["inflate"]
    assert words_of_damage("fatal: remote error: the mirror's pack is corrupt") == []
    assert words_of_damage("fatal: the remote end hung up upon initial contact") == []


def test_hours_go_by_in_seconds_where_the_product_counts_them() -> None:
    command = """if True:
        import tests.soak.hastened as hastened
        from mirror.refresh import healing, update
        print(update.KEPT_SECONDS, healing.KEPT_SECONDS)
        hastened.hasten()
        print(update.KEPT_SECONDS, healing.KEPT_SECONDS)
    """
    words = [sys.executable, "-c", command]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    day, hastened_day = "86400", str(hastened.KEPT_SECONDS)
    assert said.split() == [day, day, hastened_day, hastened_day]


# --- what the service takes ----------------------------------------------------------------------

SAMPLE = Sample(
    at=0,
    processes=1,
    memory_bytes=100_000_000,
    threads=10,
    descriptors=50,
    children=0,
    zombies=frozenset(),
)


def _rising(bytes_each_minute: float, minutes: float) -> list[Sample]:
    """Return samples of a life: warm after a minute, and rising from then on."""
    samples = [replace(SAMPLE, at=at, memory_bytes=at * 1_000_000) for at in range(0, 60, 2)]
    for number in range(int(minutes * 30)):
        memory = 100_000_000 + bytes_each_minute * number / 30
        noise = 3_000_000 * (-1) ** number
        at = 60 + 2 * number
        samples.append(replace(SAMPLE, at=at, memory_bytes=int(memory + noise)))
    return samples


def test_memory_that_rises_is_found_and_noise_is_not() -> None:
    assert list(memory_mistakes(_rising(0, 5))) == []
    assert list(memory_mistakes(_rising(2_000_000, 5))) == [], "within the slack"
    assert "memory rose by 9.0 MB a minute" in next(memory_mistakes(_rising(9_000_000, 5)))
    assert "memory rose by 1.5 MB a minute" in next(memory_mistakes(_rising(1_500_000, 60)))
    assert list(memory_mistakes(_rising(9_000_000, 1))) == [], "too short to say"


@pytest.mark.parametrize("what", ["descriptors", "threads", "children"])
def test_what_is_more_at_each_calm_is_found(what: str) -> None:
    calm, later = replace(SAMPLE, at=70), replace(SAMPLE, at=300)
    grown = replace(later, **{what: getattr(later, what) + 25})
    assert list(calm_mistakes([SAMPLE, calm, later])) == []
    (found,) = calm_mistakes([SAMPLE, calm, grown])
    assert found.startswith(f"{what} rose from")
    assert list(calm_mistakes([SAMPLE, replace(grown, at=80)])) == [], "nothing to compare with"


def test_a_child_that_nobody_reaps_is_found() -> None:
    one, other = (replace(SAMPLE, at=at, zombies=frozenset({7, at})) for at in (10, 12))
    assert list(zombie_mistakes(one, other)) == ["process 7 is a zombie for 2.0 s"]


def test_a_process_is_looked_up_with_its_memory_and_descriptors() -> None:
    pid = int(Path("/proc/self").resolve().name)
    own = tree_of(pid)[0]
    assert own.pid == pid
    assert own.memory_bytes > 1_000_000
    assert own.threads >= 1
    assert own.descriptors >= 3
    assert own.state != "Z"


def test_what_is_left_on_disk_is_found_and_counted_by_kind(tmp_path: Path) -> None:
    kept = tmp_path / "repositories" / "acme" / "app.git" / "objects" / "pack"
    kept.mkdir(parents=True)
    (kept / "pack-1.pack").write_bytes(b"12345")
    assert leftovers(tmp_path) == []
    assert bytes_by_kind(tmp_path)["repositories"] == 5
    for name in ("tmp_pack_1", "x.lock"):
        (kept / name).touch()
    for place in ("staging", "packs/tmp"):
        (tmp_path / place / "half").mkdir(parents=True)
    assert [Path(one).name for one in leftovers(tmp_path)] == [
        "half",
        "tmp_pack_1",
        "x.lock",
        "half",
    ]


def test_a_disk_that_grows_beyond_its_limits_is_found() -> None:
    first = {"packs": 0, "repositories": 10_000_000}
    limits = {"packs": 1000}

    def found(pushes: int = 0, **now: int) -> str:
        return "\n".join(disk_mistakes(first, now, pushes=pushes, limits=limits))

    assert found(packs=1000, repositories=15_000_000) == ""
    assert found(packs=1001) == "packs has 1,001 bytes, more than 1,000"
    assert "repositories rose from 10,000,000 to 30,000,000" in found(repositories=30_000_000)
    assert found(1000, repositories=30_000_000) == ""
    assert "set-aside has 1 bytes" in found(**{"set-aside": 1})


# --- the report ----------------------------------------------------------------------------------


async def test_a_report_says_what_did_not_hold_and_how_to_see_it_again() -> None:
    ledger = Ledger(42, stops=True)
    ledger.judged["polls"] = 3
    ledger.took("poll", 0.002)
    assert "No violation in 3 judgements." in ledger.report()
    ledger.phase = "outage"
    ledger.violate("acme/app", "main went back")
    assert ledger.is_stopped.is_set()
    report = ledger.report()
    assert "seed 42" in report
    assert "**1 violations**" in report
    assert "outage, acme/app:\n\n```\nmain went back\n```" in report


def test_a_line_of_json_is_what_the_log_has() -> None:
    line = json.dumps({"event": "a ref\nwith a line", "level": "info"})
    assert log_mistake(line, [], lambda _: False) is None
