"""`git-mirror token`: made, listed and revoked, while a service runs."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mirror.cli import main


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    file = tmp_path / "mirror.yaml"
    file.write_text(
        "data_dir: data\ndefaults: {access: [readers]}\n"
        "repositories: {acme/app: {upstream: 'https://github.com/acme/app'}}\n"
    )
    return file


def run(config_file: Path, *args: str) -> Result:
    return CliRunner().invoke(main, ["token", args[0], "--config", str(config_file), *args[1:]])


def test_a_token_is_made_listed_and_revoked(config_file: Path) -> None:
    made = run(config_file, "create", "flux-oslo", "--repositories", "acme/*", "--expires", "90d")
    assert made.exit_code == 0
    secret = made.output.strip()
    assert secret.startswith("gmt_")
    listed = json.loads(run(config_file, "list", "--json").output)
    assert [(one["name"], one["repositories"]) for one in listed] == [("flux-oslo", ["acme/*"])]
    assert listed[0]["expires_at"] > listed[0]["created_at"]
    table = run(config_file, "list").output
    assert "flux-oslo" in table
    assert secret not in table
    assert run(config_file, "revoke", "flux-oslo").output == "flux-oslo: revoked\n"
    assert json.loads(run(config_file, "list", "--json").output) == []


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("create", "Flux"), "is no name for a token"),
        (("create", "flux", "--repositories", "other/*"), "names no repository"),
        (("create", "flux", "--repositories", "a b"), "is no pattern"),
        (("create", "flux", "--expires", "soon"), "is not a duration"),
        (("revoke", "flux"), "there is no token 'flux'"),
    ],
)
def test_a_mistake_is_told_and_changes_nothing(
    config_file: Path, args: tuple[str, ...], words: str
) -> None:
    done = run(config_file, *args)
    assert done.exit_code == 1
    assert words in done.output
    assert json.loads(run(config_file, "list", "--json").output) == []


def test_a_name_is_not_given_twice(config_file: Path) -> None:
    assert run(config_file, "create", "flux").exit_code == 0
    again = run(config_file, "create", "flux")
    assert again.exit_code == 1
    assert "revoke it first" in again.output


def test_a_file_that_can_not_be_read_is_told(config_file: Path) -> None:
    assert run(config_file, "create", "flux").exit_code == 0
    file = config_file.parent / "data" / "tokens.json"
    file.write_text("{")
    done = run(config_file, "list")
    assert (done.exit_code, "can't be read" in done.output) == (1, True)
