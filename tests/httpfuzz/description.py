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


def kind_of(document: Mapping[str, Any], method: str, path: str) -> str:
    """Return the tag of an operation."""
    tags: list[str] = document["paths"][path][method.lower()]["tags"]
    return tags[0]


def for_fuzzing(
    *,
    repositories: Mapping[str, Sequence[str]],
    urls: Mapping[str, str],
    oids: Sequence[str],
    lfs: str,
    bundles: Sequence[str],
) -> dict[str, Any]:
    """Return the document with what is there in the place of what could be.

    A path that names a repository is told once for each of them, for slashes in a parameter are
    escaped by who follows the specification. Objects are closed. What comes by chance alone as good
    as never, a delivery that is taken or a fetch that is answered, is an alternative of its own.

    Args:
        repositories: Their paths, with ids of commits, tip first.
        urls: A clone URL for each forge, for its webhooks.
        oids: Object ids that are there.
        lfs: The id of an LFS object.
        bundles: Names of bundles.
    """
    document: dict[str, Any] = _hinted(load())
    schemas = document["components"]["schemas"]
    # As alternatives: examples are a start, and what is made up comes from anywhere.
    for name, known in (("Url", list(urls.values())), ("ObjectId", list(oids))):
        schemas[name] = {"anyOf": [{"enum": known}, schemas[name]]}
    for forge, url in urls.items():
        _with_genuine_deliveries(document, forge, url, oids)
    paths: dict[str, Any] = {}
    for path, item in document["paths"].items():
        if not path.startswith("/{repository}"):
            paths[path] = item
            continue
        for number, (repository, commits) in enumerate(repositories.items()):
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
            if path.endswith("/git-upload-pack"):
                _with_genuine_requests(one, commits)
            paths[path.replace("{repository}", repository)] = one
    document["paths"] = paths
    document["components"]["schemas"] = {
        name: closed(schema) if name in ("Status", "Repository", "Relay", "Ready") else schema
        for name, schema in schemas.items()
    }
    return document


def _with_genuine_deliveries(
    document: dict[str, Any], forge: str, url: str, oids: Sequence[str]
) -> None:
    """Have every other delivery be what the forge sends, of a repository that is mirrored."""
    operation = document["paths"][f"/webhooks/{forge}"]["post"]
    operation["parameters"][0]["required"] = True  # the event: without it, nothing more is read
    content = operation["requestBody"]["content"]
    described = content["application/json"]["schema"]
    name = described["$ref"].rpartition("/")[2]
    known = {
        "Url": {"enum": [url]},
        "ObjectId": {"enum": [*oids, "0" * 40]},
        "Ref": {"enum": ["refs/heads/main", "refs/tags/v1"]},
    }
    genuine = _whole(_with_refs(document["components"]["schemas"], name, known))
    content["application/json"]["schema"] = {"anyOf": [genuine, described]}
    form = content.get("application/x-www-form-urlencoded")
    if form is not None:
        change = {"ref": "refs/heads/main", "before": oids[1], "after": oids[0]}
        push = {**change, "repository": {"clone_url": url}}
        form["schema"]["properties"]["payload"] = {
            "anyOf": [{"enum": [json.dumps(push)]}, {"type": "string"}]
        }


def _with_refs(schemas: Mapping[str, Any], name: str, known: Mapping[str, Any]) -> Any:
    """Return a schema with those that it refers to in it, `known` ones in the place of some."""

    def resolved(part: Any) -> Any:
        if isinstance(part, list):
            return [resolved(one) for one in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            other = part["$ref"].rpartition("/")[2]
            return known.get(other) or resolved(schemas[other])
        return {key: resolved(value) for key, value in part.items()}

    return resolved(schemas[name])


def _with_genuine_requests(item: dict[str, Any], commits: Sequence[str]) -> None:
    """Have every other body be one that git sends; hooks.py makes packets of the lines."""
    want, have = f"want {commits[0]}", f"have {commits[1]}"
    bodies = [
        ["command=ls-refs", "0001", "peel", "symrefs", "0000"],
        ["command=fetch", "0001", "thin-pack", want, "done", "0000"],
        ["command=fetch", "0001", "deepen 1", "filter blob:none", want, "done", "0000"],
        ["command=fetch", "0001", want, have, "0000"],
        [f"{want} side-band-64k ofs-delta", "0000", "done"],
        [f"{want} side-band-64k", "deepen 1", "0000", "done"],
    ]
    known = ["\n".join([*lines, ""]) for lines in bodies]
    content = item["post"]["requestBody"]["content"]["application/x-git-upload-pack-request"]
    content["schema"] = {"anyOf": [{"enum": known}, content["schema"]]}


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
