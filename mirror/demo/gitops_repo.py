"""A repository with the shape of a GitOps repository, and the commit by which CI releases an image.

Made by git itself, with `fast-import`, without anybody's configuration and without a network. Dates
and names are fixed, so object ids are the same everywhere.
"""

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mirror.errors import LocalError

NAME: Final = "acme/gitops-repo"
"""What the demo calls the repository."""

RELEASE_FILE: Final = "overlays/prod-oslo/kustomization.yaml"
"""Where production's image tag stands: what `bump_image_tag` changes."""

FIRST_COMMIT_AT: Final = 1_767_600_000  # Monday, 5 January 2026, 08:00 UTC
COMMIT_EVERY_SECONDS: Final = 5 * 3600 + 17 * 60
FIRST_RELEASE: Final = 5
"""The commit that v1.0.0 names, counted from 1: the one after which both clusters are there."""

GIT_SECONDS_MAX: Final = 60.0

DEVELOPER: Final = "Kari Nordmann <kari@acme.example>"
CI: Final = "acme-ci <ci@acme.example>"

_NEW_TAG: Final = re.compile(r"(?<=newTag: )\S+")


@dataclass(frozen=True, slots=True)
class Bump:
    """A commit that changed an image tag: `after` and `before` of the push's webhook."""

    commit: str
    parent: str


@dataclass(frozen=True, slots=True)
class _Commit:
    author: str
    message: str
    files: Mapping[str, str]


def create(bare: Path) -> str:
    """Make the repository at `bare`, a path that is new, and return the tip of main.

    Raises:
        LocalError: git is missing, or failed.
    """
    bare.mkdir(parents=True)
    _git(bare, "init", "--quiet", "--bare", "--template=", "--initial-branch=main", ".")
    for key in ("http.receivepack", "uploadpack.allowFilter", "uploadpack.allowAnySHA1InWant"):
        _git(bare, "config", key, "true")
    commits = list(_history())
    stream = b"".join(
        _commit("main", commit, at=FIRST_COMMIT_AT + number * COMMIT_EVERY_SECONDS, mark=number)
        for number, commit in enumerate(commits, start=1)
    )
    ended_at = FIRST_COMMIT_AT + len(commits) * COMMIT_EVERY_SECONDS
    stream += _staging(onto=f":{len(commits) - 5}", at=ended_at)
    stream += _annotated_tag("v1.0.0", f":{FIRST_RELEASE}", at=ended_at)
    stream += f"reset refs/tags/last-known-good\nfrom :{len(commits) - 2}\n\n".encode()
    _import(bare, stream)
    _git(bare, "pack-refs", "--all")
    return _git(bare, "rev-parse", "refs/heads/main")


def bump_image_tag(bare: Path, tag: str) -> Bump:
    """Commit onto main what CI would after `kustomize edit set image web=...:<tag>`.

    Raises:
        ValueError: Production already runs `tag`.
        LocalError: git is missing, or failed.
    """
    parent = _git(bare, "rev-parse", "refs/heads/main")
    parent_at = int(_git(bare, "show", "--no-patch", "--format=%ct", parent))
    before = _git(bare, "cat-file", "blob", f"{parent}:{RELEASE_FILE}") + "\n"
    after = _NEW_TAG.sub(lambda _: tag, before)
    if after == before:
        raise ValueError(f"{RELEASE_FILE} already says newTag: {tag}")
    release = _Commit(CI, f"Release web {tag} to prod-oslo", {RELEASE_FILE: after})
    _import(bare, _commit("main", release, at=parent_at + 60, onto=parent))
    return Bump(commit=_git(bare, "rev-parse", "refs/heads/main"), parent=parent)


def _history() -> Iterator[_Commit]:
    """Tell how such a repository grows: a base, overlays, clusters, then release after release."""
    yield _Commit(DEVELOPER, "Begin with the base", {"README.md": _README} | _BASE)
    yield _Commit(DEVELOPER, "Add the dev overlay", _overlay("dev", "1.0.0", replicas=1))
    yield _Commit(
        DEVELOPER, "Add the prod-oslo overlay", _overlay("prod-oslo", "1.0.0", replicas=6)
    )
    yield _Commit(DEVELOPER, "Add the oslo-01 cluster", _cluster("oslo-01", "prod-oslo"))
    yield _Commit(DEVELOPER, "Add the bergen-dr cluster", _cluster("bergen-dr", "prod-oslo"))
    for minor in range(1, 13):
        tag = f"1.{minor}.0"
        for environment in ("dev", "prod-oslo"):
            overlay = {
                f"overlays/{environment}/kustomization.yaml": _kustomization(environment, tag)
            }
            yield _Commit(CI, f"Release web {tag} to {environment}", overlay)
        if minor % 5 == 0:
            replicas = {"overlays/prod-oslo/replicas.yaml": _replicas(6 + minor)}
            yield _Commit(DEVELOPER, f"Run {6 + minor} replicas in Oslo", replicas)


def _staging(*, onto: str, at: int) -> bytes:
    """Return the stream of a branch that left main some commits ago and went on by two."""
    overlay = _Commit(
        DEVELOPER, "Try the staging overlay", _overlay("staging", "1.12.0", replicas=2)
    )
    config = {"base/configmap.yaml": _BASE["base/configmap.yaml"].replace("info", "debug")}
    debug = _Commit(DEVELOPER, "Log more in staging", config)
    return _commit("staging", overlay, at=at, onto=onto) + _commit(
        "staging", debug, at=at + COMMIT_EVERY_SECONDS
    )


def _commit(
    branch: str, commit: _Commit, *, at: int, mark: int | None = None, onto: str | None = None
) -> bytes:
    """Return one commit of a fast-import stream (git-fast-import(1))."""
    lines = [
        f"commit refs/heads/{branch}\n",
        f"mark :{mark}\n" if mark is not None else "",
        f"author {commit.author} {at} +0100\n",
        f"committer {commit.author} {at} +0100\n",
        _data(commit.message + "\n"),
        f"from {onto}\n" if onto else "",
    ]
    lines += [f"M 100644 inline {path}\n{_data(text)}" for path, text in commit.files.items()]
    return "".join([*lines, "\n"]).encode()


def _annotated_tag(name: str, target: str, *, at: int) -> bytes:
    return (
        f"tag {name}\nfrom {target}\ntagger {DEVELOPER} {at} +0100\n{_data(f'Web shop {name}')}"
    ).encode()


def _data(text: str) -> str:
    return f"data {len(text.encode())}\n{text}\n"


def _import(bare: Path, stream: bytes) -> None:
    _git(bare, "fast-import", "--quiet", "--done", stdin=stream + b"done\n")


def _git(bare: Path, *args: str, stdin: bytes = b"") -> str:
    completed = subprocess.run(
        ["git", "--git-dir=.", *args],
        cwd=bare,
        env={
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(bare),
            "LC_ALL": "C.UTF-8",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
        },
        input=stdin,
        capture_output=True,
        check=False,
        timeout=GIT_SECONDS_MAX,
    )
    if completed.returncode != 0:
        said = completed.stderr.decode("utf-8", "replace").strip()
        raise LocalError(f"git {args[0]} failed with {completed.returncode}: {said}")
    return completed.stdout.decode().strip()


_README: Final = """\
# gitops-repo

What runs where. `base/` is the web shop, `overlays/` its environments, `clusters/` what each
cluster's controller applies. CI releases an image by changing `newTag` in an overlay.
"""

_BASE: Final = {
    "base/deployment.yaml": """\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  labels:
    app.kubernetes.io/name: web
spec:
  selector:
    matchLabels:
      app.kubernetes.io/name: web
  template:
    metadata:
      labels:
        app.kubernetes.io/name: web
    spec:
      securityContext:
        runAsNonRoot: true
      containers:
        - name: web
          image: registry.acme.example/web
          envFrom:
            - configMapRef:
                name: web
          ports:
            - name: http
              containerPort: 8080
          readinessProbe:
            httpGet:
              path: /readyz
              port: http
          resources:
            requests:
              cpu: 100m
              memory: 128Mi
            limits:
              memory: 256Mi
""",
    "base/service.yaml": """\
apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  selector:
    app.kubernetes.io/name: web
  ports:
    - name: http
      port: 80
      targetPort: http
""",
    "base/configmap.yaml": """\
apiVersion: v1
kind: ConfigMap
metadata:
  name: web
data:
  LOG_LEVEL: info
  CURRENCY: NOK
""",
    "base/kustomization.yaml": """\
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources:
  - configmap.yaml
  - deployment.yaml
  - service.yaml
""",
}


def _kustomization(environment: str, tag: str) -> str:
    return f"""\
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
namespace: web-{environment}
resources:
  - ../../base
patches:
  - path: replicas.yaml
images:
  - name: registry.acme.example/web
    newTag: {tag}
"""


def _replicas(count: int) -> str:
    return f"""\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
spec:
  replicas: {count}
"""


def _overlay(environment: str, tag: str, *, replicas: int) -> dict[str, str]:
    return {
        f"overlays/{environment}/kustomization.yaml": _kustomization(environment, tag),
        f"overlays/{environment}/replicas.yaml": _replicas(replicas),
    }


def _cluster(cluster: str, environment: str) -> dict[str, str]:
    return {
        f"clusters/{cluster}/web.yaml": f"""\
apiVersion: argoproj.io/v1alpha1
kind: Application
metadata:
  name: web
  namespace: argocd
spec:
  project: default
  source:
    repoURL: https://github.com/{NAME}.git
    targetRevision: main
    path: overlays/{environment}
  destination:
    name: {cluster}
    namespace: web-{environment}
  syncPolicy:
    automated:
      prune: true
      selfHeal: true
""",
        f"clusters/{cluster}/flux-system/gotk-sync.yaml": f"""\
apiVersion: source.toolkit.fluxcd.io/v1
kind: GitRepository
metadata:
  name: flux-system
  namespace: flux-system
spec:
  interval: 1m
  url: https://github.com/{NAME}.git
  ref:
    branch: main
---
apiVersion: kustomize.toolkit.fluxcd.io/v1
kind: Kustomization
metadata:
  name: flux-system
  namespace: flux-system
spec:
  interval: 10m
  path: ./clusters/{cluster}
  prune: true
  sourceRef:
    kind: GitRepository
    name: flux-system
""",
    }
