from mirror.access.attempts import ADDRESSES_MAX, FAILURES_MAX, SECONDS_EACH, Attempts


def test_after_so_many_failures_an_address_waits_for_each_next_one() -> None:
    attempts = Attempts()
    for _ in range(FAILURES_MAX):
        assert attempts.wait_seconds("10.0.0.1", 100.0) == 0
        attempts.failed("10.0.0.1", 100.0)
    assert attempts.wait_seconds("10.0.0.1", 100.0) == SECONDS_EACH
    assert attempts.wait_seconds("10.0.0.1", 100.0 + SECONDS_EACH) == 0
    attempts.failed("10.0.0.1", 100.0 + SECONDS_EACH)
    assert attempts.wait_seconds("10.0.0.1", 100.0 + SECONDS_EACH) == SECONDS_EACH
    assert attempts.wait_seconds("10.0.0.2", 100.0) == 0


def test_failures_are_forgotten_and_waiting_has_an_end() -> None:
    attempts = Attempts()
    for _ in range(10 * FAILURES_MAX):
        attempts.failed("10.0.0.1", 100.0)
    assert attempts.wait_seconds("10.0.0.1", 100.0) <= SECONDS_EACH
    later = 100.0 + FAILURES_MAX * SECONDS_EACH
    for _ in range(FAILURES_MAX):
        assert attempts.wait_seconds("10.0.0.1", later) == 0
        attempts.failed("10.0.0.1", later)


def test_so_many_addresses_are_remembered_and_no_more() -> None:
    attempts = Attempts()
    for _ in range(FAILURES_MAX):
        attempts.failed("first", 0.0)
    for number in range(ADDRESSES_MAX):
        attempts.failed(str(number), 0.0)
    assert attempts.wait_seconds("first", 0.0) == 0
