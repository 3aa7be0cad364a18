"""The overlay with a remote base, built by kustomize itself as the pod of `build-job.yaml` does."""

from pathlib import Path

import pytest
import yaml

from mirror.access.tokens import create_token
from mirror.demo.forge import HttpBackend
from mirror.places import DataDirectory
from tests.git_client import Upstream
from tests.mirror_service import mirroring
from tests.wiring.pasted import OVERLAY, only
from tests.wiring.running import MIRROR, led_to, real_kustomize, run

pytestmark = pytest.mark.timeout(900)

DEPLOYMENT = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: "registry.example.com/acme/web:latest"}]}
"""


async def test_kustomize_builds_it_with_the_token_that_the_pod_shows(
    forge: HttpBackend, upstream_root: Path, tmp_path: Path
) -> None:
    kustomize = real_kustomize()
    bases = Upstream(upstream_root, "acme/kustomize-bases")
    files = {"web/kustomization.yaml": "resources: [web.yaml]\n", "web/web.yaml": DEPLOYMENT}
    bases.commit(files=files)
    bases.tag("v1.4.0")
    bases.commit(files={"web/web.yaml": "kind: Broken\n"})

    async with mirroring(
        forge, tmp_path / "mirror", names=[bases.name], defaults="access: [readers]"
    ) as mirror:
        file = DataDirectory(mirror.service.settings.data_dir).tokens
        token = create_token(file, "builds", repositories=(bases.name,), expires_at=None)
        home = tmp_path / "pod"
        env = led_to(home, mirror.service.url)
        command = [str(kustomize), "build", str(OVERLAY.parent)]
        refused = await run(command, env)
        assert refused.returncode != 0

        (home / "token").write_text(token)
        pod = only("Job", "kustomize-build").spec["template"]["spec"]["containers"][0]
        moved = {MIRROR: mirror.service.url, "/var/run/git-mirror/": f"{home}/"}
        for variable in pod["env"]:
            value = str(variable["value"])
            for place, here in moved.items():
                value = value.replace(place, here)
            env[variable["name"]] = value
        built = await run(command, env)
    assert built.returncode == 0, built
    (deployment,) = yaml.safe_load_all(built.stdout)
    assert deployment["metadata"]["namespace"] == "web"
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example.com/acme/web:1.4.0"
