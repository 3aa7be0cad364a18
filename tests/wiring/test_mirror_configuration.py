"""The configuration for production is one that the mirror takes."""

from pathlib import Path

from click.testing import CliRunner

from mirror.cli import main
from mirror.config import AccessKind
from tests.wiring.production import installed, settings


def test_it_is_right_once_its_secrets_are_there(tmp_path: Path) -> None:
    file = installed(tmp_path)
    text = file.read_text().replace("/var/lib/git-mirror", str(tmp_path / "data"))
    file.write_text(text)
    done = CliRunner().invoke(main, ["check", "--config", str(file)])
    assert done.exit_code == 0, done.output
    (tmp_path / "secrets" / "flux-receiver").unlink()
    done = CliRunner().invoke(main, ["check", "--config", str(file)])
    assert done.exit_code != 0
    assert "relays.flux.secret_file" in done.output


def test_nobody_reads_without_a_name_and_nothing_goes_in_the_clear() -> None:
    applied = settings()
    assert applied.tls is not None
    for repository in applied.repositories.values():
        assert AccessKind.ANONYMOUS not in repository.access
        assert repository.upstream.startswith("https://")
        assert repository.webhook_secret_file is not None
    assert all(relay.url.startswith("https://") for relay in applied.relays.values())
