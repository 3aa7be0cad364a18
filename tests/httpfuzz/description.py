"""docs/openapi.yaml, and what the service's answers are held against in it."""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Final

import jsonschema
import yaml

FILE: Final = Path(__file__).parents[2] / "docs" / "openapi.yaml"
METHODS: Final = frozenset({"get", "put", "post", "delete", "options", "head", "patch", "trace"})


def load() -> dict[str, Any]:
    """Return the document."""
    document: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return document


def operations(document: Mapping[str, Any]) -> set[tuple[str, str]]:
    """Return the method and the path of all that is described."""
    return {
        (method.upper(), path)
        for path, item in document["paths"].items()
        for method in item.keys() & METHODS
    }


def closed(schema: Any) -> Any:
    """Return a schema by which objects have no fields but those that are described.

    Who reads the file is told that there may be more one day; there are none that it forgot.
    """
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    if isinstance(found.get("properties"), dict) and "object" in str(found.get("type")):
        found.setdefault("additionalProperties", False)
    return found


def check(
    document: Mapping[str, Any],
    method: str,
    path: str,
    *,
    status: int,
    headers: Mapping[str, str],
    body: bytes,
) -> None:
    """Hold an answer against what is said of it.

    Raises:
        AssertionError: Its status or type is not described.
        jsonschema.ValidationError: It is not as described.
    """
    responses = document["paths"][path][method.lower()]["responses"]
    assert str(status) in responses, f"{method} {path} answered {status}: {body!r}"
    described = _resolved(document, responses[str(status)])
    for name, header in described.get("headers", {}).items():
        said = _resolved(document, header)
        if name in headers:
            _validate(document, headers[name], said["schema"])
        else:
            assert not said.get("required"), f"{method} {path}: {status} without {name}"
    content = described.get("content")
    if not content:
        assert not body, f"{method} {path}: {status} with {body!r}"
        return
    kind = headers["Content-Type"].partition(";")[0]
    assert kind in content, f"{method} {path}: {status} as {kind}"
    schema = content[kind].get("schema")
    if schema is not None:
        _validate(document, json.loads(body) if "json" in kind else body.decode(), schema)


def _validate(document: Mapping[str, Any], value: object, schema: Mapping[str, Any]) -> None:
    whole = {**closed(schema), "components": closed(document["components"])}
    jsonschema.Draft202012Validator(whole).validate(value)


def _resolved(document: Mapping[str, Any], part: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = part.get("$ref")
    if reference is None:
        return part
    found: Any = document
    for key in reference.removeprefix("#/").split("/"):
        found = found[key]
    return _resolved(document, found)


def for_fuzzing(
    *,
    repositories: Sequence[str],
    urls: Sequence[str],
    oids: Sequence[str],
    lfs: str,
    bundles: Sequence[str],
) -> dict[str, Any]:
    """Return the document with what is there in the place of what could be.

    A path that names a repository is told once for each of them, for slashes in a parameter are
    escaped by who follows the specification. Objects are closed.

    Args:
        repositories: Their paths.
        urls: Clone URLs, for webhooks.
        oids: Object ids that are there.
        lfs: The id of an LFS object.
        bundles: Names of bundles.
    """
    document: dict[str, Any] = _hinted(load())
    schemas = document["components"]["schemas"]
    # As alternatives: examples are a start, and what is made up comes from anywhere.
    for name, known in (("Url", urls), ("ObjectId", oids)):
        schemas[name] = {"anyOf": [{"enum": list(known)}, schemas[name]]}
    for name in ("GitHubEvent", "GitLabEvent", "BitbucketEvent"):
        schemas[name] = {"anyOf": [_whole(schemas[name]), schemas[name]]}
    paths: dict[str, Any] = {}
    for path, item in document["paths"].items():
        if not path.startswith("/{repository}"):
            paths[path] = item
            continue
        for number, repository in enumerate(repositories):
            if number and "/info/lfs/locks" in path:
                break  # refused alike, whoever's they are
            one = deepcopy(item)
            one["parameters"] = [
                other
                for other in one["parameters"]
                if not other.get("$ref", "").endswith("/repository")
            ]
            for other in one["parameters"]:
                there = {"oid": [lfs], "bundle": list(bundles)}.get(other["name"])
                if there:
                    other["schema"] = {"anyOf": [{"enum": there}, other["schema"]]}
            paths[path.replace("{repository}", repository)] = one
    document["paths"] = paths
    document["components"]["schemas"] = {
        name: closed(schema) if name in ("Status", "Repository", "Relay", "Ready") else schema
        for name, schema in schemas.items()
    }
    return document


def _hinted(part: Any) -> Any:
    """Return a part of the document in which examples are taken half of the time."""
    if isinstance(part, list):
        return [_hinted(one) for one in part]
    if not isinstance(part, dict):
        return part
    if part.get("type") == "string" and "examples" in part:
        return {"anyOf": [{"enum": part["examples"]}, {"type": "string"}]}
    return {key: _hinted(value) for key, value in part.items()}


def _whole(schema: Any) -> Any:
    """Return a schema of objects that lack nothing."""
    if isinstance(schema, list):
        return [_whole(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _whole(value) for key, value in schema.items()}
    if isinstance(found.get("properties"), dict):
        found["required"] = list(found["properties"])
    return found
