"""Files: nobody else on the machine reads or replaces them."""

import os
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner

from mirror.cli import main
from mirror.config import check_files, load
from mirror.demo.forge import HttpBackend
from mirror.errors import LocalError
from mirror.repository.bare import BareRepository
from tests.e2e.test_credentials import served
from tests.git_client import Upstream
from tests.mirror_service import configuration

OTHERS = stat.S_IROTH | stat.S_IWOTH | stat.S_IXOTH


async def test_whatever_the_umask_nothing_in_the_data_directory_is_for_everybody(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    file = configuration(forge, tmp_path / "mirror", names=[upstream.name], server="unix_socket: s")
    before = os.umask(0)
    try:
        async with served(file, {"PATH": os.environ["PATH"]}) as running:
            await running.until("published")
            await running.until("serving")
            data = load(file).data_dir
            found = [data, *data.rglob("*")]
            modes = {path: path.lstat().st_mode for path in found}
    finally:
        os.umask(before)
    assert any(path.suffix == ".pack" for path in found)
    control = [mode for path, mode in modes.items() if stat.S_ISSOCK(mode)]
    assert [stat.S_IMODE(mode) for mode in control] == [0o600]
    assert {str(path): oct(mode) for path, mode in modes.items() if mode & OTHERS} == {}
    assert not [path for path, mode in modes.items() if mode & stat.S_IWGRP]


def test_a_data_directory_that_everybody_may_write_to_is_a_problem(tmp_path: Path) -> None:
    file = tmp_path / "mirror.yaml"
    file.write_text(
        "data_dir: data\nrepositories:\n  a/b:\n    upstream: https://forge.example/a/b.git\n"
    )
    data = tmp_path / "data"
    data.mkdir()
    assert check_files(load(file)) == []
    data.chmod(0o777)
    assert any("everybody may write to" in one for one in check_files(load(file)))
    checked = CliRunner().invoke(main, ["check", "--config", str(file)])
    assert checked.exit_code == 1


def test_a_link_in_the_place_of_a_file_that_is_about_to_be_written_is_not_followed(
    tmp_path: Path,
) -> None:
    repository = BareRepository.create(tmp_path / "a.git", upstream_url="https://forge.example/a")
    outside = tmp_path / "outside"
    outside.write_text("not ours")
    (repository.path / "packed-refs.tmp").symlink_to(outside)
    with pytest.raises(LocalError, match="can't write the refs"):
        repository.write_refs(repository.read_refs())
    assert outside.read_text() == "not ours"
    repository.close()
    # The next start takes the link away, and not what it leads to.
    again = BareRepository.open(repository.path)
    again.write_refs(again.read_refs())
    again.close()
    assert outside.read_text() == "not ours"
