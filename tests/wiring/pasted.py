"""What stands in `config/` for people to paste, read as they would read it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

CONFIG: Final = Path(__file__).parents[2] / "config"

PRODUCTION: Final = CONFIG / "production.yaml"

GITLAB: Final = CONFIG / "gitlab-ci" / "hand-off.gitlab-ci.yml"

GITHUB: Final = CONFIG / "github-actions" / "hand-off.yml"

OVERLAY: Final = CONFIG / "kustomize" / "kustomization.yaml"

KUBERNETES: Final = CONFIG / "kubernetes" / "git-mirror.yaml"
"""The mirror itself, in a cluster; the others are about what is around it."""

_MANIFESTS: Final = ("argocd/*.yaml", "flux/*.yaml", "kustomize/build-job.yaml")


def files() -> list[Path]:
    """Return every file that names the mirror."""
    manifests = [file for pattern in _MANIFESTS for file in sorted(CONFIG.glob(pattern))]
    return [PRODUCTION, GITLAB, GITHUB, OVERLAY, *manifests]


@dataclass(frozen=True)
class Manifest:
    """One document of a file."""

    file: Path
    document: dict[str, Any]

    @property
    def kind(self) -> str:
        return str(self.document["kind"])

    @property
    def name(self) -> str:
        return str(self.document["metadata"]["name"])

    @property
    def namespace(self) -> str:
        return str(self.document["metadata"]["namespace"])

    @property
    def spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = self.document["spec"]
        return spec

    def __str__(self) -> str:
        return f"{self.file.name}: {self.kind} {self.name}"


def manifests(kind: str | None = None) -> list[Manifest]:
    """Return every Kubernetes manifest, or those of a kind."""
    found = [
        one
        for pattern in _MANIFESTS
        for file in sorted(CONFIG.glob(pattern))
        for one in manifests_in(file)
    ]
    return [one for one in found if kind in (None, one.kind)]


def manifests_in(file: Path) -> list[Manifest]:
    """Return every Kubernetes manifest of a file."""
    return [Manifest(file, document) for document in yaml.safe_load_all(file.read_text())]


def only(kind: str, name: str) -> Manifest:
    """Return the manifest of that kind and name."""
    (found,) = (one for one in manifests(kind) if one.name == name)
    return found


def read(file: Path) -> dict[str, Any]:
    """Return the document of a file that has one."""
    document: dict[Any, Any] = yaml.safe_load(file.read_text())
    # YAML 1.1 takes the key `on` of a workflow for true.
    return {"on" if key is True else str(key): value for key, value in document.items()}


def gitlab_job() -> dict[str, Any]:
    """Return the job of the GitLab pipeline."""
    job: dict[str, Any] = read(GITLAB)["hand-off"]
    return job


def github_step() -> dict[str, Any]:
    """Return the step of the GitHub workflow that does the work."""
    step: dict[str, Any] = read(GITHUB)["jobs"]["hand-off"]["steps"][-1]
    return step


@dataclass(frozen=True)
class HandOff:
    """The job of either forge: the shell it is for, its script and its variables."""

    shell: tuple[str, ...]
    script: str
    variables: Mapping[str, str]


def hand_offs() -> dict[str, HandOff]:
    """Return the job of each forge."""
    job, step = gitlab_job(), github_step()
    (script,) = job["script"]
    return {
        "gitlab": HandOff(("sh", "-e", "-c"), script, job["variables"]),
        "github": HandOff(("bash", "-e", "-c"), step["run"], step["env"]),
    }


def repeated_keys(file: Path) -> Iterator[str]:
    """Yield each key that stands twice in one mapping: readers see only the last."""
    for root in yaml.compose_all(file.read_text(), Loader=yaml.SafeLoader):
        nodes = [root]
        while nodes:
            node = nodes.pop()
            if isinstance(node, yaml.SequenceNode):
                nodes += node.value
            if isinstance(node, yaml.MappingNode):
                keys = [key.value for key, _ in node.value]
                yield from (key for key in set(keys) if keys.count(key) > 1)
                nodes += [value for _, value in node.value]
