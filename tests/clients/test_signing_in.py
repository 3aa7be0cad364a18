"""Argo CD's and Flux's clients, and git, sign in at the mirror: plainly and over TLS."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from mirror.access.tokens import create_token
from mirror.demo.forge import HttpBackend
from mirror.places import DataDirectory
from tests.certificates import Authority
from tests.clients.builds import program
from tests.clients.conftest import build_upstream
from tests.clients.operations import ClientFailed, Unavailable
from tests.clients.programs import Flux, PlainProgram
from tests.git_client import GitClient, GitFailed, Upstream
from tests.mirror_service import mirroring

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]

WRONG = "gmt_" + "A" * 43


@dataclass(frozen=True)
class Guarded:
    """A mirror that only readers may read.

    Attributes:
        ca_file: The authority of its certificate, where it speaks TLS.
    """

    upstream: Upstream
    url: str
    token: str
    ca_file: Path | None


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["http", "https"])
async def guarded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Guarded]:
    directory = tmp_path_factory.mktemp("guarded")
    root = directory / "forge"
    root.mkdir()
    upstream = build_upstream(root)
    ca_file, server = None, ""
    if request.param == "https":
        authority = Authority.make(directory)
        ca_file, pair = authority.file, authority.issue(directory)
        server = f"tls: {{certificate_file: {pair}, key_file: {pair}}}"
    async with (
        HttpBackend(root) as forge,
        mirroring(
            forge,
            directory / "mirror",
            names=[upstream.name],
            workers=2,
            server=server,
            defaults="access: [readers]",
            tls=ca_file,
        ) as mirror,
    ):
        store = DataDirectory(mirror.service.settings.data_dir).tokens
        token = create_token(store, "controllers", repositories=("acme/*",), expires_at=None)
        yield Guarded(upstream, mirror.url(), token, ca_file)


def go_git(guarded: Guarded, home: Path, token: str) -> PlainProgram:
    env = {"GOGIT_PASSWORD": token}
    if guarded.ca_file is not None:
        env["GOGIT_CA_FILE"] = str(guarded.ca_file)
    return PlainProgram(_built("gogit5"), home, env=env)


def flux(guarded: Guarded, home: Path, keys: Mapping[str, str]) -> Flux:
    """Return Flux's client with a Secret of these keys."""
    secret = home / "secret"
    secret.mkdir(parents=True)
    for key, value in keys.items():
        (secret / key).write_text(value)
    if guarded.ca_file is not None:
        (secret / "ca.crt").write_bytes(guarded.ca_file.read_bytes())
    return Flux(_built("flux"), home, env={"FLUX_SECRET": str(secret)})


def _built(name: str) -> Path:
    try:
        return program(name)
    except Unavailable as error:
        pytest.skip(str(error))


async def test_argo_cds_go_git_lists_and_clones_with_a_token(
    guarded: Guarded, tmp_path: Path
) -> None:
    client = go_git(guarded, tmp_path / "home", guarded.token)
    listed = await client.listing(guarded.url)
    assert {name: listed[name] for name in guarded.upstream.refs()} == guarded.upstream.refs()
    path = tmp_path / "clone"
    await client.clone(guarded.url, path)
    await client.fetch(guarded.url, path)
    judge = GitClient(tmp_path / "judge")
    assert await judge.rev_parse(path, "origin/main") == guarded.upstream.oid()
    await judge.fsck(path)


@pytest.mark.parametrize("kind", ["basic", "bearer"])
async def test_flux_polls_and_reconciles_with_the_token_of_its_secret(
    guarded: Guarded, tmp_path: Path, kind: str
) -> None:
    basic = {"username": "git", "password": guarded.token}
    keys = basic if kind == "basic" else {"bearerToken": guarded.token}
    client = flux(guarded, tmp_path / "home", keys)
    tip = guarded.upstream.oid()
    path = tmp_path / "artifact"
    assert await client.reconcile(guarded.url, path, "branch", "main") == tip
    assert await client.poll(guarded.url, tip) == "unchanged"
    tagged = guarded.upstream.oid("v1.0.1^{commit}")
    assert await client.reconcile(guarded.url, path, "tag", "v1.0.1") == tagged
    await GitClient(tmp_path / "judge").fsck(path)


async def test_git_clones_with_the_token_of_its_credential_helper(
    guarded: Guarded, tmp_path: Path
) -> None:
    helper = f"!f() {{ echo username=x; echo 'password={guarded.token}'; }}; f"
    config = {"credential.helper": helper}
    if guarded.ca_file is not None:
        config["http.sslCAInfo"] = str(guarded.ca_file)
    client = GitClient(tmp_path / "client", config=config)
    clone = await client.clone(guarded.url, "--mirror")
    assert await client.refs(clone) == guarded.upstream.refs()


async def test_a_wrong_token_is_no_empty_repository_to_any_of_them(
    guarded: Guarded, tmp_path: Path
) -> None:
    with pytest.raises(ClientFailed, match="authentication required"):
        await go_git(guarded, tmp_path / "argo", WRONG).listing(guarded.url)
    with pytest.raises(ClientFailed, match="authentication required"):
        client = flux(guarded, tmp_path / "flux", {"username": "git", "password": WRONG})
        await client.reconcile(guarded.url, tmp_path / "artifact", "branch", "main")


@pytest.mark.parametrize("guarded", ["https"], indirect=True)
async def test_a_certificate_of_an_unknown_authority_is_not_talked_to(
    guarded: Guarded, tmp_path: Path
) -> None:
    env = {"GOGIT_PASSWORD": guarded.token}
    with pytest.raises(ClientFailed, match="certificate signed by unknown authority"):
        await PlainProgram(_built("gogit5"), tmp_path / "home", env=env).listing(guarded.url)
    with pytest.raises(GitFailed, match="certificate"):
        await GitClient(tmp_path / "client").ls_remote(guarded.url)
