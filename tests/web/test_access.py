"""Who may read, with the real git client and a running service: one process, and two."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import structlog

from mirror.access.tokens import create_token, revoke_token
from mirror.demo.forge import HttpBackend
from mirror.places import DataDirectory
from tests.access.issuer import Issuer, issuing
from tests.certificates import Authority
from tests.git_client import GitClient, Upstream
from tests.mirror_service import NAME, WAIT_SECONDS_MAX, MirrorService, git_protocol, mirroring

OTHER = "secret/plans"


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with issuing() as running:
        yield running


@pytest.fixture
def workers(request: pytest.FixtureRequest) -> int:
    """How many processes serve: one, unless a test asks for two as well."""
    return int(getattr(request, "param", 1))


in_two_processes_too = pytest.mark.parametrize(
    "workers", [1, 2], indirect=True, ids=lambda count: f"workers-{count}"
)


@pytest.fixture
async def mirror(
    forge: HttpBackend,
    upstream: Upstream,
    upstream_root: Path,
    tmp_path: Path,
    issuer: Issuer,
    workers: int,
) -> AsyncIterator[MirrorService]:
    """Two repositories; readers by token, by service account, and by the forge's word."""
    Upstream(upstream_root, OTHER).commit()
    readers = f"""
    readers:
      oidc:
        flux-oslo:
          issuer: {issuer.url}
          audience: git-mirror
          claims: {{sub: "system:serviceaccount:flux-system:*"}}
          repositories: [acme/*]
    """
    async with mirroring(
        forge,
        tmp_path / "m",
        names=[upstream.name, OTHER],
        workers=workers,
        defaults="access: [readers]",
        sections=readers,
    ) as running:
        yield running


def tokens_file(mirror: MirrorService) -> Path:
    return DataDirectory(mirror.service.settings.data_dir).tokens


def token_for(mirror: MirrorService, name: str, *patterns: str) -> str:
    file = tokens_file(mirror)
    return create_token(file, name, repositories=patterns or ("*",), expires_at=None)


def client_with(tmp_path: Path, password: str, version: int = 2) -> GitClient:
    helper = f"!f() {{ echo username=x; echo 'password={password}'; }}; f"
    place = tmp_path / f"client-{len(list(tmp_path.iterdir()))}"
    return GitClient(place, version, config={"credential.helper": helper})


def basic(password: str) -> dict[str, str]:
    return {"Authorization": aiohttp.encode_basic_auth("any-name", password)}


@pytest.mark.parametrize("version", [0, 2])
async def test_git_asks_for_a_password_and_reads_with_a_token(
    mirror: MirrorService, upstream: Upstream, tmp_path: Path, version: int
) -> None:
    anonymous = GitClient(tmp_path / "anonymous", version)
    done = await anonymous.run("ls-remote", mirror.url(), check=False)
    assert "could not read Username" in done.stderr
    good = client_with(tmp_path, token_for(mirror, "flux-oslo", "acme/*"), version)
    clone = await good.clone(mirror.url())
    upstream.commit()
    await mirror.announce(upstream)
    await good.fetch(clone)
    assert await good.rev_parse(clone, "origin/main") == upstream.oid()
    bad = client_with(tmp_path, "gmt_" + "A" * 43, version)
    done = await bad.run("ls-remote", mirror.url(), check=False)
    assert done.returncode != 0
    assert "Authentication failed" in done.stderr


@in_two_processes_too
async def test_what_one_may_not_see_is_as_if_it_were_not_there(mirror: MirrorService) -> None:
    headers = basic(token_for(mirror, "flux-oslo", "acme/*"))
    seen = await mirror.info_refs(NAME, headers=headers)
    hidden = await mirror.info_refs(OTHER, headers=headers)
    missing = await mirror.info_refs("no/such", headers=headers)
    assert (seen.status, hidden.status, missing.status) == (200, 404, 404)
    assert hidden.text.replace(OTHER, "no/such") == missing.text
    for shown in ({}, basic("wrong")):
        there = await mirror.info_refs(OTHER, headers=shown)
        nowhere = await mirror.info_refs("no/such", headers=shown)
        assert (there.status, nowhere.status) == (401, 401)
        assert there.text == nowhere.text
        asked = there.headers.getall("WWW-Authenticate")  # type: ignore[attr-defined]
        assert [one.partition(" ")[0] for one in asked] == ["Basic", "Bearer"]
    for path in (f"/{OTHER}/git-upload-pack", f"/{OTHER}/git-receive-pack"):
        answer = await mirror.ask("POST", path, body=b"0000", headers={})
        assert answer.status == 401
    pushing = await mirror.get(f"/{OTHER}/info/refs?service=git-receive-pack")
    assert pushing.status == 401, "the refusal would name the upstream"


@in_two_processes_too
async def test_a_revoked_token_reads_nothing_a_second_later_not_even_what_is_known_by_heart(
    mirror: MirrorService,
) -> None:
    headers = basic(token_for(mirror, "flux-oslo"))
    for _ in range(3):
        assert (await mirror.info_refs(headers=headers)).status == 200
    revoke_token(tokens_file(mirror), "flux-oslo")
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        while (await mirror.info_refs(headers=headers)).status != 401:
            pass


@in_two_processes_too
async def test_a_service_accounts_token_reads_as_password_and_as_bearer(
    mirror: MirrorService, issuer: Issuer, tmp_path: Path
) -> None:
    token = issuer.token()
    clone = await client_with(tmp_path, token).clone(mirror.url())
    assert (clone / "README.md").exists()
    bearer = {"Authorization": f"Bearer {token}"}
    assert (await mirror.info_refs(headers=bearer)).status == 200
    assert (await mirror.info_refs(OTHER, headers=bearer)).status == 404
    expired = {"Authorization": f"Bearer {issuer.token(exp=1)}"}
    answer = await mirror.info_refs(headers=expired)
    assert (answer.status, "expired" in answer.text) == (401, True)


@in_two_processes_too
async def test_guessing_is_slowed_down_and_polls_of_good_clients_are_not(
    mirror: MirrorService, workers: int
) -> None:
    good = basic(token_for(mirror, "flux-oslo"))
    assert (await mirror.info_refs(headers=good)).status == 200
    answers = [
        await mirror.info_refs(headers=basic(f"guess-{number}")) for number in range(25 * workers)
    ]
    assert answers[0].status == 401
    assert answers[-1].status == 429
    assert int(answers[-1].headers["Retry-After"]) >= 1
    for _ in range(30):
        assert (await mirror.info_refs(headers=good)).status == 200
    assert await mirror.metric("git_mirror_refused_readers_total", reason="too_many")


async def test_figures_that_name_repositories_are_for_this_machine_unless_said_otherwise(
    mirror: MirrorService,
) -> None:
    assert (await mirror.get("/status.json")).status == 200
    assert (await mirror.get("/metrics")).status == 200
    assert (await mirror.get("/healthz")).status == 200


async def test_through_a_proxy_that_is_believed_the_client_counts(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    async with mirroring(
        forge,
        tmp_path / "m",
        names=[upstream.name],
        defaults="access: [readers]",
        server="trusted_proxies: [127.0.0.1], monitoring_from: [10.0.0.0/8]",
    ) as mirror:
        for client, status in (("10.1.2.3", 200), ("192.168.1.1", 403), ("127.0.0.1", 200)):
            headers = {"X-Forwarded-For": f"127.0.0.1, {client}"}
            assert (await mirror.get("/metrics", headers=headers)).status == status
        guesses = [
            {**basic(f"guess-{number}"), "X-Forwarded-For": "192.168.1.1"} for number in range(25)
        ]
        answers = [await mirror.info_refs(headers=headers) for headers in guesses]
        assert answers[-1].status == 429
        headers = {**basic("other"), "X-Forwarded-For": "192.168.1.2"}
        assert (await mirror.info_refs(headers=headers)).status == 401


async def test_with_the_forges_word_each_reads_what_they_may_read_there(
    upstream: Upstream, upstream_root: Path, tmp_path: Path
) -> None:
    place = tmp_path / "m"
    place.mkdir()
    (place / "token").write_text("good")
    (place / "token").chmod(0o600)
    async with (
        HttpBackend(upstream_root, basic_auth=("reader", "good")) as forge,
        mirroring(
            forge,
            place,
            names=[upstream.name],
            defaults="access: [upstream]",
            repository="credentials: {username: reader, password_file: token}",
        ) as mirror,
    ):
        forge.requests.clear()
        reader = {"Authorization": aiohttp.encode_basic_auth("reader", "good")}
        stranger = {"Authorization": aiohttp.encode_basic_auth("stranger", "good")}
        for _ in range(5):
            assert (await mirror.info_refs(headers=reader)).status == 200
            assert (await mirror.info_refs(headers=stranger)).status == 401
            assert (await mirror.info_refs()).status == 401
        assert len(forge.requests) == 2
        forge.faults.status = 503
        assert (await mirror.info_refs(headers=reader)).status == 200
        new = {"Authorization": aiohttp.encode_basic_auth("new", "good")}
        assert (await mirror.info_refs(headers=new)).status == 502


async def test_the_log_says_who_read(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as logs:
        async with mirroring(
            forge, tmp_path / "m", names=[upstream.name], defaults="access: [readers]"
        ) as mirror:
            secret = token_for(mirror, "flux-oslo")
            client = client_with(tmp_path, secret)
            await client.clone(mirror.url(), name="one")
            await client.clone(mirror.url(), name="two")
    written = capfd.readouterr()
    assert secret not in written.err + written.out
    served = [one for one in logs if one["event"] == "served"]
    assert [one["reader"] for one in served] == ["token flux-oslo"] * 2


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.make(tmp_path)


@in_two_processes_too
async def test_a_client_certificate_reads_what_its_subject_may(
    forge: HttpBackend,
    upstream: Upstream,
    upstream_root: Path,
    tmp_path: Path,
    authority: Authority,
    workers: int,
) -> None:
    Upstream(upstream_root, OTHER).commit()
    served = authority.issue(tmp_path)
    tls = f"tls: {{certificate_file: {served}, key_file: {served}"
    async with mirroring(
        forge,
        tmp_path / "m",
        names=[upstream.name, OTHER],
        workers=workers,
        defaults="access: [readers]",
        server=f"{tls}, client_ca_file: {authority.file}}}",
        sections="""
        readers:
          certificates:
            argocd: {subject: "CN=argocd-*", repositories: [acme/*]}
        """,
        tls=authority.file,
    ) as mirror:
        assert mirror.url().startswith("https://")
        settings = {"http.sslCAInfo": str(authority.file)}
        known = authority.issue(tmp_path, name="argocd-repo-server")
        own = {"http.sslCert": str(known), "http.sslKey": str(known)}
        client = GitClient(tmp_path / "known", config={**settings, **own})
        for _ in range(3):
            assert (await client.ls_remote(mirror.url()))["refs/heads/main"] == upstream.oid()
        done = await client.run("ls-remote", mirror.url(OTHER), check=False)
        assert "not found" in done.stderr
        stranger = authority.issue(tmp_path, name="somebody")
        for more in ({}, {"http.sslCert": str(stranger), "http.sslKey": str(stranger)}):
            other = GitClient(tmp_path / f"other-{len(more)}", config={**settings, **more})
            done = await other.run("ls-remote", mirror.url(), check=False)
            assert "could not read Username" in done.stderr
        foreign_place = tmp_path / "foreign"
        foreign_place.mkdir()
        foreign = Authority.make(foreign_place).issue(foreign_place, name="argocd-repo-server")
        config = {**settings, "http.sslCert": str(foreign), "http.sslKey": str(foreign)}
        done = await GitClient(tmp_path / "forger", config=config).run(
            "ls-remote", mirror.url(), check=False
        )
        assert done.returncode != 0


async def test_requests_over_tls_are_never_answered_from_another_readers_answers(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, authority: Authority
) -> None:
    served = authority.issue(tmp_path)
    tls = f"tls: {{certificate_file: {served}, key_file: {served}"
    async with mirroring(
        forge,
        tmp_path / "m",
        names=[upstream.name],
        defaults="access: [readers]",
        server=f"{tls}, client_ca_file: {authority.file}}}",
        sections='readers: {certificates: {argocd: {subject: "CN=argocd"}}}',
        tls=authority.file,
    ) as mirror:
        known, nobody = (ssl.create_default_context(cafile=str(authority.file)) for _ in "12")
        known.load_cert_chain(authority.issue(tmp_path, name="argocd"))
        url = f"{mirror.url()}/info/refs?service=git-upload-pack"
        for _ in range(3):
            for context, status in ((known, 200), (nobody, 401)):
                connector = aiohttp.TCPConnector(ssl=context)
                async with (
                    aiohttp.ClientSession(connector=connector) as session,
                    session.get(url, headers=git_protocol(2)) as answer,
                ):
                    assert answer.status == status
