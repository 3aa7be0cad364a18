"""The metrics of several processes read like those of one."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mirror.metrics import Metrics
from mirror.workers.figures import added, counts_of, dump, exposition, lasting, load


def counted(requests: int, builds: int = 0) -> Metrics:
    metrics = Metrics("1.0")
    for number in range(requests):
        metrics.record_request("fetch", "ok", 0.002 * number)
    for _ in range(builds):
        metrics.record_build_began()
    return metrics


def samples(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_one_process_alone_reads_as_it_says_itself() -> None:
    metrics = counted(3, 1)
    assert samples(exposition(counts_of(metrics.registry))) == samples(metrics.exposition())


def test_counters_histograms_and_gauges_are_added_and_the_version_is_not() -> None:
    processes = [counts_of(counted(*each).registry) for each in [(3, 1), (4, 2)]]
    total = samples(exposition(added(processes)))
    both = samples(counted(3, 1).exposition())
    for key, value in samples(counted(4, 2).exposition()).items():
        both[key] += value
    both["git_mirror_build_info", (("version", "1.0"),)] = 1.0
    assert total == both
    labels = (("operation", "fetch"), ("outcome", "ok"))
    assert total["git_mirror_request_seconds_count", labels] == 7


def test_a_series_that_only_one_process_has_is_in_the_sum() -> None:
    one, other = counted(0), counted(0)
    other.record_refresh("poll", "changed", 1.0)
    total = samples(exposition(added([counts_of(one.registry), counts_of(other.registry)])))
    labels = (("outcome", "changed"), ("trigger", "poll"))
    assert total["git_mirror_refresh_seconds_count", labels] == 1


def test_adding_changes_none_of_what_is_added() -> None:
    first, second = counts_of(counted(3).registry), counts_of(counted(4).registry)
    before = dump(first), dump(second)
    assert added([first, second]) == added([first, second])
    assert (dump(first), dump(second)) == before


def test_what_a_process_counted_stays_when_it_is_gone_but_not_its_gauges() -> None:
    kept = samples(exposition(lasting(counts_of(counted(3, 2).registry))))
    labels = (("operation", "fetch"), ("outcome", "ok"))
    assert kept["git_mirror_request_seconds_count", labels] == 3
    assert ("git_mirror_pack_builds_running", ()) not in kept


def test_counts_come_through_a_message_as_they_were() -> None:
    counts = counts_of(counted(3, 1).registry)
    assert load(dump(counts)) == counts


@pytest.mark.parametrize("text", ["", "{", "[[1]]", '[["a", "b", "c", [["d", [], "e"]]]]'])
def test_other_text_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        load(text)
