"""The metrics of all processes as one: added up, whichever of them is asked.

Counters and histograms never go down, or Prometheus would take it for a restart of everything: what
a worker had counted when it was last asked stays in the sum after its end.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

NOT_ADDED: Final = frozenset(
    {"git_mirror_build_info", "git_mirror_certificate_expires_timestamp_seconds"}
)
"""Gauges that say the same in each process."""

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Family:
    """The samples of one metric in one process, by name and labels."""

    name: str
    kind: str
    help: str
    samples: dict[tuple[str, Labels], float]


def counts_of(registry: CollectorRegistry) -> list[Family]:
    """Return what a process has counted."""
    return [
        Family(
            one.name,
            one.type,
            one.documentation,
            {
                (sample.name, tuple(sorted(sample.labels.items()))): sample.value
                for sample in one.samples
                if not sample.name.endswith("_created")  # a time, not a count
            },
        )
        for one in registry.collect()
    ]


def dump(families: Iterable[Family]) -> str:
    """Return families as a message carries them."""
    return json.dumps(
        [
            [one.name, one.kind, one.help, [[*key, value] for key, value in one.samples.items()]]
            for one in families
        ]
    )


def load(text: str) -> list[Family]:
    """Return what `dump` was given.

    Raises:
        ValueError: It was not `dump` that made it.
    """
    families = []
    for name, kind, documentation, samples in json.loads(text):
        by_key = {
            (str(sample), tuple((str(key), str(text)) for key, text in labels)): float(value)
            for sample, labels, value in samples
        }
        families.append(Family(str(name), str(kind), str(documentation), by_key))
    return families


def added(processes: Iterable[Iterable[Family]]) -> list[Family]:
    """Add up the families of several processes; the first has those that are not added."""
    total: dict[str, Family] = {}
    for families in processes:
        for one in families:
            known = total.get(one.name)
            if known is None:
                total[one.name] = Family(one.name, one.kind, one.help, dict(one.samples))
            elif one.name not in NOT_ADDED:
                for key, value in one.samples.items():
                    known.samples[key] = known.samples.get(key, 0.0) + value
    return list(total.values())


def lasting(families: Iterable[Family]) -> list[Family]:
    """Return what stays in the sum when a process has ended: all but gauges."""
    return [one for one in families if one.kind != "gauge"]


def exposition(families: Iterable[Family]) -> bytes:
    """Return families in Prometheus' text format."""
    return generate_latest(_Collected(families))


class _Collected(Collector):
    """Families in the form that prometheus_client takes."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        for one in self._families:
            metric = Metric(one.name, one.help, one.kind)
            for (name, labels), value in one.samples.items():
                metric.add_sample(name, dict(labels), value)
            yield metric
