"""The doctor, with a real service and a real forge to look at."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mirror.config import load
from mirror.demo.forge import ForgeRequest, HttpBackend
from mirror.doctor.examine import examine
from mirror.doctor.finding import Finding, Verdict
from mirror.doctor.service import examine_webhook
from tests.certificates import Authority
from tests.git_client import Upstream
from tests.mirror_service import NAME, MirrorService, mirroring
from tests.ways import forward_proxy, tls_front


@pytest.fixture
async def mirror(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> AsyncIterator[MirrorService]:
    async with mirroring(forge, tmp_path / "m", names=[upstream.name]) as running:
        yield running


async def looked(mirror: MirrorService, *names: str, url: str = "") -> dict[str, Finding]:
    found = await examine(mirror.service.settings, names, url=url or mirror.service.url)
    return {one.check: one for one in found}


async def test_all_is_looked_at_and_has_a_verdict(
    mirror: MirrorService, forge: HttpBackend, upstream: Upstream
) -> None:
    upstream.commit()
    await mirror.announce(upstream)
    await mirror.settled()
    forge.requests.clear()
    found = await looked(mirror)
    assert found.keys() == {
        *("disk: 4 KiB write and fdatasync", "disk: free space", "open files"),
        *("DNS", "TCP", "clock", "poll of the upstream", "fetch from the upstream"),
        *("freshness", "webhook", "poll of the mirror", "fetch from the mirror"),
        *("version", "left over", "owners and modes"),
    }
    assert found["left over"].verdict is found["owners and modes"].verdict is Verdict.OK
    for check in ("DNS", "TCP", "clock", "poll of the upstream", "fetch from the upstream"):
        assert found[check].verdict is Verdict.OK, found[check]
    assert found["freshness"].verdict is found["webhook"].verdict is Verdict.OK
    assert found["poll of the mirror"].data["count"] == 50
    assert found["fetch from the mirror"].data["count"] == 50
    assert len(forge.requests) <= 12, "forges count requests"


@pytest.mark.parametrize("version", [0, 2])
async def test_an_upstream_of_any_version_is_polled_and_fetched_from(
    mirror: MirrorService, forge: HttpBackend, version: int
) -> None:
    forge.faults.force_protocol_v0 = version == 0
    found = await looked(mirror)
    assert found["fetch from the upstream"].verdict is Verdict.OK
    assert "bytes)" in found["fetch from the upstream"].figure


async def test_an_upstream_that_refuses_is_a_problem_with_its_words(
    mirror: MirrorService, forge: HttpBackend
) -> None:
    forge.faults.status = 404
    found = await looked(mirror, NAME)
    assert found["poll of the upstream"].verdict is Verdict.PROBLEM
    assert "answered 404" in found["poll of the upstream"].figure
    assert "fetch from the upstream" not in found
    assert found["poll of the mirror"].verdict is not Verdict.PROBLEM, "it still serves"
    forge.faults.status = None
    forge.faults.only = ForgeRequest.is_fetch
    forge.faults.status = 500
    found = await looked(mirror, NAME)
    assert found["fetch from the upstream"].verdict is Verdict.PROBLEM
    assert found["poll of the upstream"].verdict is Verdict.OK


async def test_an_empty_upstream_has_nothing_to_fetch(
    forge: HttpBackend, upstream_root: Path, tmp_path: Path
) -> None:
    Upstream(upstream_root, "acme/new")
    believed = "refs_vanish_after: 0s"
    async with mirroring(forge, tmp_path / "m", names=["acme/new"], defaults=believed) as mirror:
        found = await looked(mirror)
    assert found["fetch from the upstream"].verdict is Verdict.NOTE
    assert found["fetch from the mirror"].verdict is Verdict.NOTE
    assert found["webhook"].verdict is Verdict.WARNING
    assert "none since the service started" in found["webhook"].figure


async def test_an_upstream_is_looked_at_by_its_own_route(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    """With the authorities that are trusted for it; and of a proxy, the way to that."""
    authority = Authority.make(tmp_path)
    (tmp_path / "secret").write_text("pr0xy-p4ss")
    file = tmp_path / "mirror.yaml"
    account = "proxy_credentials: {username: mirror, password_file: secret}"
    async with (
        tls_front(forge.port, authority.server_context(tmp_path)) as port,
        forward_proxy() as proxy,
    ):
        url = f"upstream: https://localhost:{port}/{upstream.name}.git"

        async def looked_at(keys: str) -> dict[tuple[str, str], Verdict]:
            file.write_text(f"data_dir: data\nrepositories: {{a: {{{url}, {keys}}}}}")
            found = await examine(load(file), [], url=proxy.url)
            return {(one.subject, one.check): one.verdict for one in found}

        direct = await looked_at("ca_file: ca.pem")
        assert direct[f"localhost:{port}", "TLS"] is Verdict.OK
        assert direct["a", "fetch from the upstream"] is Verdict.OK
        by_proxy = await looked_at(f"ca_file: ca.pem, proxy: '{proxy.url}', {account}")
        assert by_proxy[f"127.0.0.1:{proxy.port}", "TCP"] is Verdict.OK
        assert by_proxy[f"localhost:{port}", "clock"] is Verdict.OK
        assert by_proxy["a", "fetch from the upstream"] is Verdict.OK
        assert (f"localhost:{port}", "TCP") not in by_proxy
        (tmp_path / "ca.pem").unlink()
        assert (await looked_at("ca_file: ca.pem"))[f"localhost:{port}", "route"] is Verdict.PROBLEM


async def test_a_service_that_does_not_run_is_a_problem(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    async with mirroring(forge, tmp_path / "m", names=[upstream.name]) as mirror:
        settings, url = mirror.service.settings, mirror.service.url
    found = {one.check: one for one in await examine(settings, [], url=url)}
    assert found[f"answers at {url}"].verdict is Verdict.PROBLEM
    assert "open files (of this shell: no service runs)" in found
    assert found["poll of the upstream"].verdict is Verdict.OK


async def test_a_repository_that_the_service_does_not_know_is_a_problem(
    forge: HttpBackend, upstream_root: Path, upstream: Upstream, tmp_path: Path
) -> None:
    Upstream(upstream_root, "acme/later").commit()
    async with mirroring(forge, tmp_path / "m", names=[upstream.name]) as mirror:
        file = mirror.service.settings.source
        url = forge.repository_url("acme/later")
        other = file.with_name("other.yaml")  # the service reads its own again when that changes
        other.write_text(file.read_text() + f"  acme/later: {{upstream: {url}, forge: github}}\n")
        found = await examine(load(other), ["acme/later"], url=mirror.service.url)
    assert [one.figure for one in found if one.check == "freshness"] == ["not served"]


def test_a_change_that_no_webhook_brought_is_told(tmp_path: Path) -> None:
    file = tmp_path / "mirror.yaml"
    file.write_text(
        "repositories: {a: {upstream: 'https://github.com/a/a', webhook_secret_file: secret},"
        " b: {upstream: 'https://github.com/a/b', poll_interval: never},"
        " c: {upstream: 'https://github.com/a/c'}}"
    )
    a, b, c = load(file).repositories.values()
    state = {
        "last_webhook_at": "2026-11-25T10:00:00.000Z",
        "last_change_at": "2026-11-25T10:00:01.000Z",
    }
    now = 1_795_687_200.0  # 12:00 on that day
    assert examine_webhook(a, state, now=now).verdict is Verdict.OK
    assert examine_webhook(a, state, now=now).figure.endswith("ago")
    late = {**state, "last_change_at": "2026-11-25T10:05:00.000Z"}
    assert "found by a poll" in examine_webhook(a, late, now=now).advice
    assert examine_webhook(b, state, now=now).verdict is Verdict.PROBLEM
    assert examine_webhook(c, state, now=now).verdict is Verdict.NOTE


async def test_the_command_prints_a_table_or_json_and_tells_by_its_exit_code(
    mirror: MirrorService, forge: HttpBackend
) -> None:
    async def run(*args: str) -> tuple[int | None, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "mirror", "doctor", "--config", str(mirror.service.settings.source)),
            *("--url", mirror.service.url, *args),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={"PATH": os.defpath, "COLUMNS": "200"},
        )
        output, _ = await process.communicate()
        return process.returncode, output.decode()

    code, text = await run()
    assert "poll of the mirror" in text
    assert "Traceback" not in text
    findings = json.loads((await run("--json", f"{NAME}.git"))[1])
    assert {"subject", "check", "verdict", "figure", "advice", "data"} == findings[0].keys()
    forge.faults.status = 401
    code, text = await run("--json")
    assert code == 1
    assert "it wants credentials" in text
    code, text = await run("acme/none")
    assert code == 1
    assert "no repository 'acme/none'" in text
