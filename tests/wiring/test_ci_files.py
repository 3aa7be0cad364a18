"""The CI files are what GitLab and GitHub take."""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

from tests.wiring.pasted import GITHUB, GITLAB, hand_offs, read

SCHEMAS = Path(__file__).parent / "schemas"


def mistakes(name: str, document: Any) -> list[str]:
    schema = json.loads((SCHEMAS / f"{name}.json").read_text())
    Draft7Validator.check_schema(schema)
    return [error.message for error in Draft7Validator(schema).iter_errors(document)]


@pytest.mark.parametrize(
    ("name", "file", "path"),
    [
        pytest.param("gitlab-ci", GITLAB, ("hand-off",), id="gitlab-job"),
        pytest.param("github-workflow", GITHUB, (), id="github-workflow"),
        pytest.param("github-workflow", GITHUB, ("jobs", "hand-off"), id="github-job"),
        pytest.param("github-workflow", GITHUB, ("jobs", "hand-off", "steps", 1), id="github-step"),
    ],
)
def test_a_ci_file_is_as_its_forge_publishes_it_and_has_no_unknown_key(
    name: str, file: Path, path: tuple[str | int, ...]
) -> None:
    document = read(file)
    assert mistakes(name, document) == []
    place: Any = document
    for part in path:
        place = place[part]
    place["nobody-knows-this"] = 1
    assert mistakes(name, document) != []


def test_both_forges_run_the_same_script() -> None:
    gitlab, github = hand_offs().values()
    assert gitlab.script == github.script
    assert github.variables.keys() - gitlab.variables.keys() == {"GITOPS_TOKEN"}
