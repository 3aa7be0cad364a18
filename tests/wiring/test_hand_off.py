"""CI's hand-off as it stands in the files: the real script, git and kustomize, through the mirror.

The forge's credentials are the only ones that a job has: the mirror passes them on with a push, and
asks the forge whether they may read.
"""

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
import yaml

from mirror.demo.forge import HttpBackend
from tests.git_client import Completed, Upstream
from tests.mirror_service import MirrorService, mirroring, refs_of
from tests.wiring.pasted import HandOff, hand_offs
from tests.wiring.running import led_to, real_kustomize, run

pytestmark = pytest.mark.timeout(900)  # somebody may have to build kustomize first

USER, TOKEN = "x-access-token", "the-token-of-the-pipelines"

PATH: Final = "apps/web/overlays/production"

OVERLAY: Final = """\
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources:
- ../../base
images: # each pipeline knows of its own only
- name: registry.example.com/acme/web
  newTag: "1"
- name: registry.example.com/acme/worker
  newTag: "1"
"""

FORGES: Final = tuple(hand_offs())

# The first time, each of two pipelines waits for the other: both have cloned, neither has pushed.
KUSTOMIZE: Final = """\
#!/bin/sh
if [ -n "${SIDE:-}" ] && mkdir "$HOME/met" 2>/dev/null; then
  case $SIDE in left) : > "$MEETING" ;; right) : < "$MEETING" ;; esac
fi
exec "$KUSTOMIZE" "$@"
"""


@pytest.fixture
async def forge(upstream_root: Path) -> AsyncIterator[HttpBackend]:
    """A forge where one has to sign in, for reading too."""
    async with HttpBackend(upstream_root, basic_auth=(USER, TOKEN)) as running:
        yield running


@pytest.fixture
def upstream(upstream_root: Path) -> Upstream:
    repository = Upstream(upstream_root)
    repository.commit(files={f"{PATH}/kustomization.yaml": OVERLAY}, message="Begin")
    return repository


@pytest.fixture
def workers() -> int:
    """How many processes serve, unless a test says otherwise."""
    return 1


@pytest.fixture
async def mirror(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, workers: int
) -> AsyncIterator[MirrorService]:
    """A mirror with the keys of `config/production.yaml` that matter here."""
    place = tmp_path / "mirror"
    place.mkdir()
    (place / "token").write_text(TOKEN)
    (place / "token").chmod(0o600)
    credentials = f"credentials: {{username: {USER}, password_file: token}}"
    async with mirroring(
        forge,
        place,
        names=[upstream.name],
        workers=workers,
        repository=f"access: [readers, upstream]\npush: proxy\n{credentials}",
    ) as running:
        yield running


@dataclass(frozen=True)
class Pipelines:
    """Runs jobs as CI does, each on a machine of its own."""

    place: Path
    kustomize: Path

    def __post_init__(self) -> None:
        programs = self.place / "programs"
        programs.mkdir(parents=True)
        for name, text in (("kustomize", KUSTOMIZE), ("sleep", "#!/bin/sh\nexit 0\n")):
            file = programs / name  # nobody has to wait in a test
            file.write_text(text)
            file.chmod(file.stat().st_mode | stat.S_IXUSR)
        os.mkfifo(self.place / "meeting")

    async def run(
        self, job: HandOff, url: str, *, name: str = "web", tag: str = "2", side: str = ""
    ) -> Completed:
        """Run a job; `side`, left or right, lets it wait for the other one."""
        home = self.place / f"{name}-{tag}-{len(list(self.place.iterdir()))}"
        env = led_to(home, url)
        done = await run(
            [*job.shell, job.script],
            {
                **env,
                **job.variables,
                "PATH": f"{self.place / 'programs'}:{env['PATH']}",
                "KUSTOMIZE": str(self.kustomize),
                "MEETING": str(self.place / "meeting"),
                "SIDE": side,
                "GITOPS_TOKEN": TOKEN,
                "IMAGE": f"registry.example.com/acme/{name}",
                "TAG": tag,
                "BUILT_BY": "a pipeline",
            },
        )
        written = [file for file in home.rglob("*") if file.is_file()]
        assert not [file for file in written if TOKEN.encode() in file.read_bytes()]
        assert TOKEN not in done.stdout + done.stderr
        return done


@pytest.fixture
def pipelines(tmp_path: Path) -> Pipelines:
    return Pipelines(tmp_path / "pipelines", real_kustomize())


@pytest.fixture(params=FORGES)
def job(request: pytest.FixtureRequest) -> HandOff:
    return hand_offs()[request.param]


def tags(upstream: Upstream, revision: str = "main") -> dict[str, str]:
    overlay = yaml.safe_load(upstream.git("show", f"{revision}:{PATH}/kustomization.yaml"))
    return {image["name"].rpartition("/")[2]: image["newTag"] for image in overlay["images"]}


def served(mirror: MirrorService) -> str:
    return refs_of(mirror.mirror())["refs/heads/main"]


@pytest.mark.parametrize("workers", [2])
async def test_the_tag_lands_and_the_mirror_serves_it_at_once(
    mirror: MirrorService, upstream: Upstream, pipelines: Pipelines, job: HandOff
) -> None:
    done = await pipelines.run(job, mirror.service.url)
    assert done.returncode == 0, done
    assert tags(upstream) == {"web": "2", "worker": "1"}
    assert upstream.oid() in done.stdout
    assert served(mirror) == upstream.oid()
    assert upstream.git("log", "-1", "--format=%B") == (
        "Deploy registry.example.com/acme/web:2\n\na pipeline"
    )

    again = await pipelines.run(job, mirror.service.url)
    assert again.returncode == 0, again
    assert "stands there already" in again.stdout
    assert upstream.git("rev-list", "--count", "main") == "2"


@pytest.mark.parametrize("workers", [2])
async def test_two_pipelines_at_once_both_land(
    mirror: MirrorService, upstream: Upstream, pipelines: Pipelines
) -> None:
    one, other = hand_offs().values()
    url = mirror.service.url
    finished = await asyncio.gather(
        pipelines.run(one, url, name="web", side="left"),
        pipelines.run(other, url, name="worker", side="right"),
    )
    assert [done.returncode for done in finished] == [0, 0], finished
    assert ["rejected" in done.stderr for done in finished].count(True) == 1, finished
    assert tags(upstream) == {"web": "2", "worker": "2"}
    assert upstream.git("rev-list", "--count", "main") == "3"
    assert upstream.git("rev-list", "--min-parents=2", "--count", "main") == "0"
    assert served(mirror) == upstream.oid()


async def test_what_somebody_pushed_to_the_forge_meanwhile_is_kept(
    mirror: MirrorService, upstream: Upstream, pipelines: Pipelines, job: HandOff
) -> None:
    theirs = OVERLAY.replace('worker\n  newTag: "1"', 'worker\n  newTag: "3"')
    upstream.commit(files={f"{PATH}/kustomization.yaml": theirs})  # the mirror is told by nobody
    done = await pipelines.run(job, mirror.service.url)
    assert done.returncode == 0, done
    assert "fetch first" in done.stderr
    assert tags(upstream) == {"web": "2", "worker": "3"}
    assert served(mirror) == upstream.oid()


async def test_a_push_that_the_forge_refuses_is_given_up_in_its_words(
    mirror: MirrorService, upstream: Upstream, pipelines: Pipelines, job: HandOff
) -> None:
    hook = upstream.path / "hooks" / "pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho 'main is protected' >&2\nexit 1\n")
    hook.chmod(hook.stat().st_mode | stat.S_IXUSR)
    done = await pipelines.run(job, mirror.service.url)
    assert done.returncode == 1
    assert "main is protected" in done.stderr
    assert "gave up after 4 attempts" in done.stderr
    assert tags(upstream) == {"web": "1", "worker": "1"}


async def test_the_same_job_works_with_the_forge_itself_while_the_mirror_is_away(
    forge: HttpBackend, upstream: Upstream, pipelines: Pipelines, job: HandOff
) -> None:
    url = forge.repository_url(upstream.name).partition(f"/{upstream.name}")[0]
    done = await pipelines.run(job, url)
    assert done.returncode == 0, done
    assert tags(upstream) == {"web": "2", "worker": "1"}
