"""The example for Kubernetes fits the image and the service that it runs."""

import re
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from mirror.config import AccessKind, parse
from mirror.demo.forge import HttpBackend
from tests.git_client import Upstream
from tests.mirror_service import mirroring
from tests.packaging.image import DOCKERFILE
from tests.wiring.pasted import KUBERNETES, manifests_in


def one(kind: str) -> dict[str, Any]:
    (found,) = (one.document for one in manifests_in(KUBERNETES) if one.kind == kind)
    return found


@pytest.fixture
def pod() -> dict[str, Any]:
    spec: dict[str, Any] = one("StatefulSet")["spec"]["template"]["spec"]
    return spec


@pytest.fixture
def container(pod: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod["containers"]
    return dict(container)


def test_its_configuration_is_one_that_the_mirror_takes(container: dict[str, Any]) -> None:
    text = one("ConfigMap")["data"]["mirror.yaml"]
    settings = parse(text.encode(), source=Path("/etc/git-mirror/mirror.yaml"))
    assert settings.server.listen.host == "0.0.0.0"  # noqa: S104 - the pod's own address
    assert [port["containerPort"] for port in container["ports"]] == [settings.server.listen.port]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert mounts[str(settings.data_dir)] == "data"
    for repository in settings.repositories.values():
        assert AccessKind.ANONYMOUS not in repository.access
        secret = repository.webhook_secret_file
        assert secret is not None
        assert mounts[str(secret.parent)] == "secrets"


def test_no_mount_is_below_another_that_can_not_be_written(container: dict[str, Any]) -> None:
    paths = [Path(mount["mountPath"]) for mount in container["volumeMounts"]]
    assert [path for path in paths if any(path.is_relative_to(p) for p in paths if p != path)] == []


def test_it_runs_as_the_image_does_and_may_do_nothing_else(
    pod: dict[str, Any], container: dict[str, Any]
) -> None:
    user, group = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE.read_text(), re.MULTILINE)[-1]
    security = pod["securityContext"]
    assert (security["runAsUser"], security["runAsGroup"]) == (int(user), int(group))
    assert security["runAsNonRoot"]
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not pod["automountServiceAccountToken"]
    assert one("StatefulSet")["spec"]["replicas"] == 1  # each would be a mirror of its own


async def test_its_probes_and_its_monitor_ask_for_what_there_is(
    container: dict[str, Any], forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    probes = [value for key, value in container.items() if key.endswith("Probe")]
    paths = {probe["httpGet"]["path"] for probe in probes}
    paths |= {endpoint["path"] for endpoint in one("ServiceMonitor")["spec"]["endpoints"]}
    assert paths == {"/healthz", "/readyz", "/metrics"}
    async with (
        mirroring(forge, tmp_path, names=[upstream.name]) as mirror,
        aiohttp.ClientSession(mirror.service.url) as session,
    ):
        for path in paths:
            async with session.get(path) as response:
                assert response.status == 200, path


def test_all_select_the_same_pods() -> None:
    labels = one("StatefulSet")["spec"]["template"]["metadata"]["labels"]
    assert one("StatefulSet")["spec"]["selector"]["matchLabels"] == labels
    assert one("Service")["spec"]["selector"] == labels
    assert one("Service")["metadata"]["labels"] == labels
    assert one("NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == labels
    for kind in ("PodDisruptionBudget", "ServiceMonitor"):
        assert one(kind)["spec"]["selector"]["matchLabels"] == labels
