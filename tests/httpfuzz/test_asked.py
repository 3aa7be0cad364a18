"""The tally of what schemathesis asked: whatever it hardly came to is told."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.httpfuzz.asked import DELIVERIES_MIN, Asked
from tests.httpfuzz.described import SHARES
from tests.httpfuzz.description import for_fuzzing, kind_of, operations

DOCUMENT = {
    "paths": {
        "/healthz": {"get": {"tags": ["monitoring"]}},
        "/webhooks/github": {"post": {"tags": ["webhooks"]}},
        "/webhooks/gitlab": {"post": {"tags": ["webhooks"]}},
    }
}


@pytest.fixture
def asked() -> Asked:
    return Asked(DOCUMENT)


def take(asked: Asked, file: Path, *counts: tuple[str, str, int]) -> None:
    file.write_text(json.dumps(counts))
    asked.take(file)


def test_what_was_never_asked_and_a_forge_without_a_delivery_taken_are_told(
    asked: Asked, tmp_path: Path
) -> None:
    take(
        asked,
        tmp_path / "tally",
        ("POST /webhooks/github", "400", DELIVERIES_MIN),
        ("POST /webhooks/gitlab", "401", DELIVERIES_MIN),
        ("POST /webhooks/gitlab", "accepted", 1),
        ("TRACE /healthz", "405", 1),
    )
    assert list(asked.starved()) == [
        "GET /healthz was never asked",
        f"none of {DELIVERIES_MIN} deliveries to /webhooks/github was accepted",
    ]


def test_runs_add_up(asked: Asked, tmp_path: Path) -> None:
    for _ in range(2):
        take(asked, tmp_path / "tally", ("POST /webhooks/github", "accepted", 3))
    assert list(asked.lines("webhooks")) == [
        "webhooks: 6 requests of 2 operations, 0 to 6 of each: accepted 6",
        "  /webhooks/github: accepted 6",
        "  /webhooks/gitlab: none",
    ]


def test_each_kind_of_request_has_its_share_of_the_time() -> None:
    document: dict[str, Any] = for_fuzzing(
        repositories={"acme/app": ["1" * 40, "2" * 40]},
        urls={"github": "https://forge.example/acme/app.git"},
        oids=["1" * 40, "2" * 40],
        lfs="3" * 64,
        bundles=["full.bundle"],
    )
    kinds = {kind_of(document, *operation) for operation in operations(document)}
    assert kinds == SHARES.keys()
    assert document["paths"].keys() >= {"/acme/app/info/refs", "/webhooks/bitbucket"}
