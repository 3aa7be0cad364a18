"""The doctor looks at receivers of events."""

from pathlib import Path

from mirror.demo.forge import HttpBackend
from mirror.doctor.examine import examine
from mirror.doctor.finding import Verdict
from tests.git_client import Upstream
from tests.mirror_service import mirroring
from tests.refresh.relay.receiving import receiving, refuse, relays
from tests.refresh.relay.telling import failed, push

REACH, EVENTS = "receiver accepts connections", "events are taken"


async def test_receivers_are_reached_without_an_event_and_what_they_did_not_take_is_shown(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    async with receiving() as gone:
        pass
    async with receiving() as well, receiving() as wrong:
        wrong.answer = refuse(*[401] * 99)
        sections = relays(
            tmp_path / "m",
            well=f"argocd {well.url}/x",
            wrong=f"argocd {wrong.url}/x",
            gone=f"flux {gone.url}/hook/x",
        )
        async with mirroring(forge, tmp_path / "m", sections=sections) as mirror:
            await push(mirror, upstream)
            await well.came(1)
            await failed(mirror, "wrong")
            await failed(mirror, "gone")
            heard = len(well.events)
            settings = mirror.service.settings
            findings = await examine(settings, [upstream.name], url=mirror.service.url)
            assert len(well.events) == heard
    found = {(one.subject, one.check): one for one in findings}
    verdicts = {
        name: [found[f"relay {name}", check].verdict for check in (REACH, EVENTS)]
        for name in ("well", "wrong", "gone")
    }
    assert verdicts == {
        "well": [Verdict.OK, Verdict.OK],
        "wrong": [Verdict.OK, Verdict.PROBLEM],
        "gone": [Verdict.PROBLEM, Verdict.PROBLEM],
    }
    assert "secret_file" in found["relay wrong", EVENTS].advice
    assert found["relay gone", EVENTS].data["pending"] == 1
