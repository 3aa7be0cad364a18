"""The files for people to paste fit one another: URLs, names, branches, secrets, rights."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from mirror.config import AccessKind, PushPolicy
from tests.wiring.pasted import (
    OVERLAY,
    Manifest,
    files,
    github_step,
    gitlab_job,
    manifests,
    only,
    read,
    repeated_keys,
)
from tests.wiring.production import settings

MIRROR = "https://git-mirror.example.com"

BRANCH = "main"


@pytest.mark.parametrize("file", files(), ids=lambda file: file.name)
def test_no_key_stands_twice(file: Path) -> None:
    assert list(repeated_keys(file)) == []


@pytest.mark.parametrize("file", files(), ids=lambda file: file.name)
def test_each_url_of_the_mirror_names_a_repository_that_it_has(file: Path) -> None:
    known = settings().repositories
    text = file.read_text()
    urls = re.findall(r"https://git-mirror\.example\.com[A-Za-z0-9._/-]*", text)
    for url in urls:
        path = url.removeprefix(MIRROR).partition("//")[0].strip("/")
        assert path in ("", ".helper", "acme", *known), url
    hosts = set(re.findall(r"[a-z-]*mirror\.example\.com", text))
    assert hosts <= {"git-mirror.example.com"}


def test_the_public_url_is_what_controllers_are_configured_with() -> None:
    assert settings().server.public_url == MIRROR
    for url, _ in sources():
        name = url.removeprefix(MIRROR + "/")
        assert name in settings().repositories
        assert settings().relays["argocd"].tells(name)


def test_everybody_follows_the_same_branch() -> None:
    assert {branch for _, branch in sources()} == {BRANCH}
    automation = only("ImageUpdateAutomation", "gitops-repo").spec["git"]
    assert automation["checkout"]["ref"]["branch"] == automation["push"]["branch"] == BRANCH
    assert gitlab_job()["variables"]["GITOPS_BRANCH"] == BRANCH
    assert github_step()["env"]["GITOPS_BRANCH"] == BRANCH


def test_what_ci_writes_is_what_controllers_deploy() -> None:
    path = gitlab_job()["variables"]["GITOPS_PATH"]
    application = only("Application", "web")
    assert application.spec["source"]["path"] == path
    assert only("Kustomization", "web").spec["path"] == f"./{path}"
    (directory,) = only("ApplicationSet", "apps").spec["generators"][0]["git"]["directories"]
    assert re.fullmatch(directory["path"].replace("*", "[^/]+"), path)
    (watched,) = application.document["metadata"]["annotations"].values()
    assert f"/{path}".startswith(watched)
    update = only("ImageUpdateAutomation", "gitops-repo").spec["update"]["path"]
    assert f"./{path}".startswith(update)
    images = {
        gitlab_job()["variables"]["IMAGE"],
        github_step()["env"]["IMAGE"],
        only("ImageRepository", "web").spec["image"],
        read(OVERLAY)["images"][0]["name"],
    }
    assert len(images) == 1


def test_no_secret_stands_in_a_file() -> None:
    for secret in manifests("Secret"):
        assert secret.document["stringData"].keys() <= {"type", "url", "username"}
    for external in manifests("ExternalSecret"):
        known = {entry["secretKey"] for entry in external.spec["data"]}
        for key, value in contents(external).items():
            if key not in ("type", "url", "username", "forceHttpBasicAuth"):
                assert value in {f"{{{{ .{name} }}}}" for name in known}, (str(external), key)


def test_each_secret_that_is_referred_to_is_made_and_has_what_is_read_of_it() -> None:
    for repository in manifests("GitRepository"):
        made = secret_for(repository)
        assert contents(made).keys() == {"username", "password"}
    assert contents(secret_for(only("Receiver", "git-mirror"))).keys() == {"token"}
    argocd = only("ExternalSecret", "git-mirror-webhook")
    assert argocd.spec["target"] == {
        "name": "argocd-secret",
        "creationPolicy": "Merge",
        "deletionPolicy": "Retain",
    }
    assert contents(argocd).keys() == {"webhook.github.secret"}


def test_argo_cd_finds_its_credentials_by_label_and_url() -> None:
    kinds = {
        labelled(one): contents(one)["url"]
        for one in manifests("ExternalSecret")
        if labelled(one) is not None
    }
    repository = only("Secret", "git-mirror-gitops-repo").document
    (kind,) = repository["metadata"]["labels"].values()
    assert kind == "repository"
    url = repository["stringData"]["url"]
    assert {url} == {url for url, _ in sources()}
    assert url.startswith(kinds["repo-creds"] + "/")
    assert kinds["repository-write"] == url
    assert not {"username", "password"} & repository["stringData"].keys()  # or no template applies


def test_readers_have_a_token_of_the_mirror_and_writers_a_credential_of_the_forge() -> None:
    writer = only("ImageUpdateAutomation", "gitops-repo").spec["sourceRef"]["name"]
    for repository in manifests("GitRepository"):
        (entry,) = secret_for(repository).spec["data"]
        is_writer = repository.name == writer
        assert entry["remoteRef"]["key"].startswith("forge/" if is_writer else "git-mirror/")
        assert repository.spec.get("suspend", False) == is_writer
    written = {only("GitRepository", writer).spec["url"], gitlab_job()["variables"]["GITOPS_URL"]}
    written |= {github_step()["env"]["GITOPS_URL"]}
    for url in written:
        repository_settings = settings().repositories[url.removeprefix(MIRROR + "/")]
        assert repository_settings.push is PushPolicy.PROXY
        assert AccessKind.UPSTREAM in repository_settings.access


def test_the_receiver_wakes_what_is_read_from_the_mirror_and_no_writer() -> None:
    (resource,) = only("Receiver", "git-mirror").spec["resources"]
    woken = [
        one.name
        for one in manifests("GitRepository")
        if resource["matchLabels"].items() <= one.document["metadata"].get("labels", {}).items()
    ]
    assert resource["name"] == "*"
    assert woken == [only("Kustomization", "web").spec["sourceRef"]["name"]] == ["gitops-repo"]


def test_relays_reach_receivers_where_an_ingress_lets_them_in() -> None:
    relays = settings().relays
    ways = {
        (rule["host"], path["path"])
        for ingress in manifests("Ingress")
        for rule in ingress.spec["rules"]
        for path in rule["http"]["paths"]
    }
    places = {name: urlsplit(relay.url) for name, relay in relays.items()}
    of_sets, of_flux = places["argocd-applicationsets"], places["flux"]
    assert ways == {(of_sets.hostname, of_sets.path), (of_flux.hostname, "/hook/")}
    assert of_flux.path.startswith("/hook/")
    assert places["argocd"].path == of_sets.path == "/api/webhook"
    assert relays["argocd"].secret_file == relays["argocd-applicationsets"].secret_file
    for ingress in manifests("Ingress"):
        (tls,) = ingress.spec["tls"]
        assert tls["hosts"] == [rule["host"] for rule in ingress.spec["rules"]]


def test_the_pod_that_builds_is_the_reader_that_the_mirror_knows() -> None:
    (reader,) = settings().readers.oidc
    job, account = only("Job", "kustomize-build"), only("ServiceAccount", "kustomize")
    pod = job.spec["template"]["spec"]
    assert pod["serviceAccountName"] == account.name
    assert job.namespace == account.namespace
    subject = f"system:serviceaccount:{account.namespace}:{account.name}"
    assert reader.claims == {"sub": subject}
    token = pod["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"]
    assert token["audience"] == reader.audience
    (base,) = read(OVERLAY)["resources"]
    assert base.removeprefix(MIRROR + "/").partition("//")[0] in reader.repositories


def sources() -> Iterator[tuple[str, str]]:
    """Yield the URL and the branch of everything that is deployed."""
    for application in manifests("Application"):
        source = application.spec["source"]
        yield source["repoURL"], source["targetRevision"]
    for applications in manifests("ApplicationSet"):
        source = applications.spec["template"]["spec"]["source"]
        yield source["repoURL"], source["targetRevision"]
        for generator in applications.spec["generators"]:
            yield generator["git"]["repoURL"], generator["git"]["revision"]
    for repository in manifests("GitRepository"):
        yield repository.spec["url"], repository.spec["ref"]["branch"]


def secret_for(manifest: Manifest) -> Manifest:
    """Return what makes the secret that a manifest refers to."""
    name = manifest.spec["secretRef"]["name"]
    made: Iterable[Manifest] = manifests("ExternalSecret")
    (found,) = (
        one
        for one in made
        if one.spec["target"]["name"] == name and one.namespace == manifest.namespace
    )
    return found


def contents(external: Manifest) -> dict[str, Any]:
    """Return the keys of the secret that is made, with what stands in the template."""
    template = external.spec["target"].get("template")
    if template is not None:
        written: dict[str, Any] = template["data"]
        return written
    return {
        entry["secretKey"]: f"{{{{ .{entry['secretKey']} }}}}" for entry in external.spec["data"]
    }


def labelled(external: Manifest) -> str | None:
    """Return what Argo CD takes the secret for."""
    template = external.spec["target"].get("template", {})
    labels: dict[str, str] = template.get("metadata", {}).get("labels", {})
    return labels.get("argocd.argoproj.io/secret-type")
