"""The manifests are what the projects publish of their kinds: no unknown field, nothing missing."""

import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from tests.clients.builds import program
from tests.clients.operations import Unavailable
from tests.clients.programs import Program
from tests.wiring.pasted import KUBERNETES, Manifest, manifests, manifests_in, only

pytestmark = pytest.mark.timeout(900)

FREE: Final = {
    *("annotations", "data", "labels", "limits", "matchLabels", "requests", "selector"),
    "stringData",
}
"""Mappings whose keys are the user's own: in a template of a Secret, `data` is one too."""

UNKNOWN: Final = "nobodyKnowsThis"


@pytest.fixture
def checker(tmp_path: Path) -> Program:
    try:
        return Program(program("manifests"), tmp_path)
    except Unavailable as error:
        pytest.skip(str(error))


def everything() -> list[Manifest]:
    return [*manifests(), *manifests_in(KUBERNETES)]


async def mistakes_of(checker: Program, documents: Sequence[Any]) -> list[list[str]]:
    file = checker.workdir / "manifests.json"
    file.write_text(json.dumps(documents))
    found: list[list[str]] = json.loads(await checker.run(str(file)))
    return found


async def test_each_manifest_is_as_its_project_publishes_it(checker: Program) -> None:
    given = everything()
    found = await mistakes_of(checker, [one.document for one in given])
    assert {
        str(one): mistakes for one, mistakes in zip(given, found, strict=True) if mistakes
    } == {}
    assert {one.kind for one in given} >= {
        *("Application", "ApplicationSet", "ExternalSecret", "Secret", "Ingress", "Job"),
        *("GitRepository", "Kustomization", "Receiver", "ImageUpdateAutomation"),
        *("StatefulSet", "Service", "NetworkPolicy", "PodDisruptionBudget", "ServiceMonitor"),
    }


async def test_a_field_that_nobody_knows_would_be_found_wherever_it_stood(checker: Program) -> None:
    spoilt = [spoilt for one in everything() for spoilt in with_unknown_fields(one)]
    found = await mistakes_of(checker, [document for _, document in spoilt])
    places = [where for (where, _), mistakes in zip(spoilt, found, strict=True) if not mistakes]
    assert places == []
    assert len(spoilt) > 100


async def test_what_is_missing_or_no_such_word_would_be_found(checker: Program) -> None:
    repository, receiver = (
        copy.deepcopy(only(*named).document)
        for named in (("GitRepository", "gitops-repo"), ("Receiver", "git-mirror"))
    )
    del repository["spec"]["url"]
    receiver["spec"]["type"] = "generic-sha3"
    found = await mistakes_of(checker, [repository, receiver])
    assert any("url" in mistake for mistake in found[0])
    assert any("generic-sha3" in mistake for mistake in found[1])


def with_unknown_fields(manifest: Manifest) -> Iterator[tuple[str, Any]]:
    """Yield the manifest with one field too many, for each mapping whose keys are not free."""
    for path in mappings(manifest.document):
        document = copy.deepcopy(manifest.document)
        place = document
        for part in path:
            place = place[part]
        place[UNKNOWN] = "x"
        yield f"{manifest}, {'.'.join(map(str, path)) or 'at the top'}", document


def mappings(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(node, dict):
        yield path
        for key, value in node.items():
            if not (key in FREE and isinstance(value, dict)):
                yield from mappings(value, (*path, key))
    if isinstance(node, list):
        for number, value in enumerate(node):
            yield from mappings(value, (*path, number))
