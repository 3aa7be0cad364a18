"""The store of prepared answers: what it finds, what it forgets, and what it refuses to hold."""

from collections.abc import Callable

from mirror.web.repeating import Answers, Prepared, Repeatable


def prepared(body: bytes = b"body", *, is_valid: Callable[[], bool] = lambda: True) -> Prepared:
    return Prepared(
        Repeatable(body, is_valid),
        before_date=b"HTTP/1.1 200 OK\r\nDate: ",
        after_date=b"\r\nX-Request-Id: ",
        record=lambda _: None,
        context={},
        closes=False,
    )


def test_an_answer_is_found_by_who_asks_and_what() -> None:
    answers = Answers()
    kept = prepared()
    answers.keep("anna", b"request", kept)
    assert answers.find("anna", b"request") is kept
    assert answers.find("bert", b"request") is None
    assert answers.find("anna", b"another request") is None


def test_an_answer_that_is_not_valid_any_more_is_forgotten_for_good() -> None:
    valid = [True]
    answers = Answers()
    answers.keep(None, b"request", prepared(is_valid=lambda: valid[0]))
    assert answers.find(None, b"request")
    valid[0] = False
    assert answers.find(None, b"request") is None
    assert (len(answers), answers.size) == (0, 0)
    valid[0] = True
    assert answers.find(None, b"request") is None


def test_a_newer_answer_takes_the_place_of_the_older_and_of_its_bytes() -> None:
    answers = Answers()
    answers.keep(None, b"request", prepared(b"x" * 1000))
    newer = prepared(b"y")
    answers.keep(None, b"request", newer)
    assert answers.find(None, b"request") is newer
    assert answers.size == len(b"request") + newer.size < 1000


def test_past_the_bounds_the_least_recently_used_leave_first() -> None:
    answers = Answers(count_max=3)
    for request in (b"1", b"2", b"3"):
        answers.keep(None, request, prepared())
    answers.find(None, b"1")
    answers.keep(None, b"4", prepared())
    assert [bool(answers.find(None, request)) for request in (b"1", b"2", b"3", b"4")] == [
        *(True, False, True, True)
    ]


def test_all_that_is_kept_stays_below_the_bound_in_bytes() -> None:
    answers = Answers(bytes_max=10_000)
    for number in range(100):
        answers.keep(None, b"%d" % number, prepared(bytes(1000)))
        assert answers.size <= 10_000
    assert answers.find(None, b"99")
    answers.keep(None, b"too long", prepared(bytes(20_000)))
    assert (len(answers), answers.size) == (0, 0)


def test_the_date_is_the_one_of_the_moment() -> None:
    answer = prepared()
    for date in (b"Mon", b"Mon", b"Tue"):
        assert answer.head(date) == b"HTTP/1.1 200 OK\r\nDate: %b\r\nX-Request-Id: " % date
