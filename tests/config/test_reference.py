import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from pydantic import BaseModel

from mirror.config import json_schema, load, reference_markdown
from mirror.config.models import SECTIONS, keys_of
from mirror.config.notation import Notation
from tests.config.documents import ISSUE_EXAMPLE, loaded

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "config" / "mirror.yaml"
REFERENCE = ROOT / "docs" / "configuration.md"


def is_valid(text: str) -> bool:
    validator = Draft202012Validator(json_schema())
    return bool(validator.is_valid(yaml.safe_load(text)))


def all_keys() -> list[tuple[type[BaseModel], str, str]]:
    return [
        (section, key, name)
        for section in SECTIONS.values()
        for key, name in keys_of(section).items()
    ]


def test_the_example_file_loads() -> None:
    assert len(load(EXAMPLE).repositories) == 3


def test_the_example_file_loads_with_every_comment_that_shows_a_default() -> None:
    text = EXAMPLE.read_text()
    uncommented = text.replace("\n# limits:", "\nlimits:").replace("\n# log:", "\nlog:")
    uncommented = uncommented.replace("\n# upstreams:", "\nupstreams:")
    uncommented = uncommented.replace("\n#   ", "\n  ").split("\nserver:", 1)[1]
    settings = loaded("server:" + uncommented)
    assert settings.find("github.com/acme/app") is not None
    assert settings.limits == load(EXAMPLE).limits
    assert settings.log == load(EXAMPLE).log


@pytest.mark.parametrize("text", [EXAMPLE.read_text(), ISSUE_EXAMPLE], ids=["file", "issue"])
def test_the_examples_are_valid_by_the_schema(text: str) -> None:
    assert is_valid(text)


def test_the_schema_is_a_schema_and_plain_json() -> None:
    schema = json_schema()
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert json.loads(json.dumps(schema)) == schema


REPOSITORY = "upstream: https://github.com/acme/app.git"


@pytest.mark.parametrize(
    "keys",
    [
        "hold: 0",
        "hold: 0s",
        "hold: 1m30s",
        "max_age: never",
        "max_age: 0",
        "poll_interval: never",
        "credentials: none",
        "webhook_secret_file: none",
        "refs: [refs/heads/release-*]",
        "bundle_interval: 1d",
        "bundle_interval: never",
        "bundle_bytes_min: 0",
    ],
)
def test_what_loads_is_valid_by_the_schema(keys: str) -> None:
    text = f"repositories: {{acme/app: {{{REPOSITORY}, {keys}}}}}"
    assert list(loaded(text).repositories) == ["acme/app"]
    assert is_valid(text)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "repositories: {}",
        "repositories: {acme/app: {}}",
        "repositories: {acme/app: null}",
        *(
            f"repositories: {{{name}: {{{REPOSITORY}}}}}"
            for name in ["acme/app.git", ".x", "a//b", "webhooks/x", "status.json", "a b"]
        ),
        *(
            f"repositories: {{acme/app: {{{REPOSITORY}, {keys}}}}}"
            for keys in [
                "pol_interval: 30s",
                "poll_interval: 30",
                "poll_interval: 0",
                "poll_interval: 30 s",
                "poll_interval:",
                "hold: never",
                "hold: 5",
                "on_stale: maybe",
                "forge: svn",
                "refs: []",
                "refs: [main]",
                "refs: [refs/git-mirror/x]",
                "refs: refs/heads/*",
                "credentials: {}",
                "credentials: {password_file: x, password: y}",
                "credentials: token",
                "webhook_secret: x",
            ]
        ),
        "repositories: {acme/app: {upstream: 'ssh://git@github.com/acme/app'}}",
        "repositories: {acme/app: {upstream: 'https://user:x@github.com/acme/app'}}",
        *(
            f"{{repositories: {{acme/app: {{{REPOSITORY}}}}}, {keys}}}"
            for keys in [
                "engin: git",
                "engine: Git",
                "server: {listen: '::1:80'}",
                "limits: {refreshes_max: 0}",
                "limits: {refreshes_max: many}",
                "limits: {request_bytes_max: 64MB}",
                "log: {level: trace}",
                "data_dir: ~/x",
                "data_dir: ''",
            ]
        ),
    ],
)
def test_a_mistake_is_invalid_by_the_schema(text: str) -> None:
    assert not is_valid(text)


def test_every_default_in_the_schema_is_valid_and_reads_as_itself() -> None:
    definitions: dict[str, Any] = json_schema()["$defs"] | {"ConfigDocument": json_schema()}
    for section, key, name in all_keys():
        schema = definitions[section.__name__]["properties"][key]
        if "default" not in schema:
            continue
        Draft202012Validator(schema).validate(schema["default"])
        field = section.model_fields[name]
        default = schema["default"]
        text = default if isinstance(default, str) else json.dumps(default)
        for notation in field.metadata:
            if isinstance(notation, Notation):
                assert notation.read(text) == field.default


def test_every_key_has_a_description_and_refuses_others_beside_it() -> None:
    definitions: dict[str, Any] = json_schema()["$defs"] | {"ConfigDocument": json_schema()}
    for section, key, _ in all_keys():
        definition = definitions[section.__name__]
        assert definition["properties"][key]["description"].endswith(".")
        assert definition["additionalProperties"] is False


def test_the_reference_names_every_key() -> None:
    reference = reference_markdown()
    assert all(f"| `{key}` |" in reference for _, key, _ in all_keys())


def test_the_tables_of_the_reference_are_well_formed() -> None:
    rows = [line for line in reference_markdown().split("\n") if line.startswith("|")]
    assert rows
    assert all(line.count("|") == 6 for line in rows)


def test_the_reference_in_docs_is_up_to_date() -> None:
    assert REFERENCE.read_text() == reference_markdown(), "run `make docs`"


def test_the_reference_ends_with_one_newline() -> None:
    assert reference_markdown().endswith("|\n")
