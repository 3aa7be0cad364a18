"""What is not mirrored yet is mirrored, and told of, only for those who may read it."""

from pathlib import Path

import aiohttp

from mirror.access.tokens import create_token
from mirror.demo.forge import HttpBackend
from mirror.places import DataDirectory
from tests.git_client import GitClient, Upstream
from tests.mirror_service import NAME, MirrorService
from tests.pull_through import AT, mirrored_names, pulling

PULLED = f"{AT}/{NAME}"
NAMES = [PULLED, f"{AT}/acme/none", f"{AT}/acme/secret-plans", "no/such"]


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": aiohttp.encode_basic_auth(user, password)}


def token_for(mirror: MirrorService, *patterns: str) -> dict[str, str]:
    file = DataDirectory(mirror.service.settings.data_dir).tokens
    return basic("any", create_token(file, "flux", repositories=patterns, expires_at=None))


async def test_nothing_is_begun_or_told_for_who_may_not_read(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    async with pulling(forge, tmp_path / "mirror", place="access: [readers]") as mirror:
        headers = token_for(mirror, f"{AT}/acme/g*")
        for shown in ({}, basic("any", "wrong")):
            answers = [await mirror.info_refs(name, headers=shown) for name in NAMES]
            assert [one.status for one in answers] == [401] * 4
            assert len({one.text for one in answers}) == 1
            for service in ("git-upload-pack", "git-receive-pack"):
                assert (await mirror.ask("POST", f"/{PULLED}/{service}", body=b"")).status == 401
            pushing = await mirror.get(f"/{PULLED}/info/refs?service=git-receive-pack")
            assert pushing.status == 401
        answers = [await mirror.info_refs(name, headers=headers) for name in NAMES[1:]]
        assert [one.status for one in answers] == [404] * 3
        assert forge.requests == []
        assert mirrored_names(mirror) == []
        assert (await mirror.info_refs(PULLED, headers=headers)).status == 200
        assert mirrored_names(mirror) == [PULLED]


async def test_the_forge_decides_who_may_read_what_is_not_mirrored_yet(
    upstream: Upstream, upstream_root: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "mirror/password"
    secret.parent.mkdir()
    secret.write_text("good")
    secret.chmod(0o600)
    place = "access: [upstream]\ncredentials: {username: reader, password_file: password}"
    async with (
        HttpBackend(upstream_root, basic_auth=("reader", "good")) as forge,
        pulling(forge, tmp_path / "mirror", place=place) as mirror,
    ):
        for headers in ({}, basic("reader", "bad")):
            assert (await mirror.info_refs(PULLED, headers=headers)).status == 401
        assert mirrored_names(mirror) == []
        helper = "!f() { echo username=reader; echo password=good; }; f"
        git = GitClient(tmp_path / "client", config={"credential.helper": helper})
        clone = await git.clone(mirror.url(PULLED))
        assert await git.rev_parse(clone, "HEAD") == upstream.oid()
        assert mirrored_names(mirror) == [PULLED]
