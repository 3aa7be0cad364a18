import os
import stat
from pathlib import Path

import pytest

from mirror.config import (
    WEBHOOK_SECRETS_MAX,
    PasswordSettings,
    RepositorySettings,
    Settings,
    check_files,
    load,
)
from mirror.config.files import SECRET_BYTES_MAX


def written(directory: Path, content: str = "hunter2\n", mode: int = 0o600) -> Path:
    path = directory / "secret"
    path.write_text(content)
    path.chmod(mode)
    return path


def with_secret(directory: Path, secret: Path) -> Settings:
    repository = RepositorySettings(
        name="acme/app", upstream="https://github.com/acme/app.git", webhook_secret_file=secret
    )
    return Settings(
        source=directory / "mirror.yaml",
        data_dir=directory,
        repositories={repository.name: repository},
    )


def with_data_dir(data_dir: Path) -> Settings:
    return Settings(source=Path("/mirror.yaml"), data_dir=data_dir, repositories={})


KEY = "repositories.acme/app.webhook_secret_file"


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640])
def test_a_secret_that_others_can_not_read_is_no_problem(tmp_path: Path, mode: int) -> None:
    assert check_files(with_secret(tmp_path, written(tmp_path, mode=mode))) == []


def test_a_missing_secret_is_reported(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    assert check_files(with_secret(tmp_path, secret)) == [
        f"{KEY}: {secret} does not exist; create it with the secret in it and mode 0600"
    ]


@pytest.mark.parametrize("content", ["", "\n", " \t\r\n"])
def test_an_empty_secret_is_reported(tmp_path: Path, content: str) -> None:
    secret = written(tmp_path, content)
    assert check_files(with_secret(tmp_path, secret)) == [
        f"{KEY}: {secret} is empty; write the secret into it"
    ]


def test_a_secret_that_everybody_can_read_is_reported(tmp_path: Path) -> None:
    secret = written(tmp_path, mode=0o644)
    assert check_files(with_secret(tmp_path, secret)) == [
        f"{KEY}: {secret} can be read by every user of this machine; run `chmod o-rwx {secret}`"
    ]


def test_every_problem_of_a_secret_is_reported(tmp_path: Path) -> None:
    problems = check_files(with_secret(tmp_path, written(tmp_path, "", mode=0o644)))
    assert len(problems) == 2


def test_a_file_too_long_for_a_secret_is_reported(tmp_path: Path) -> None:
    secret = written(tmp_path, "x" * (SECRET_BYTES_MAX + 1))
    [problem] = check_files(with_secret(tmp_path, secret))
    assert problem.endswith("is longer than 64 KiB; it holds no secret")


def test_a_directory_in_the_place_of_a_secret_is_reported(tmp_path: Path) -> None:
    assert check_files(with_secret(tmp_path, tmp_path)) == [
        f"{KEY}: {tmp_path} is not a file; name a file that holds the secret and nothing else"
    ]


def test_a_pipe_in_the_place_of_a_secret_is_reported_and_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    [problem] = check_files(with_secret(tmp_path, pipe))
    assert "is not a file" in problem


def test_a_secret_that_can_not_be_opened_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = written(tmp_path)

    def refuse(self: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert check_files(with_secret(tmp_path, secret)) == [
        f"{KEY}: {secret} can't be read: Permission denied; make it readable for this user"
    ]


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_a_path_that_no_file_can_have_is_reported(tmp_path: Path, name: str) -> None:
    [problem] = check_files(with_secret(tmp_path, tmp_path / name))
    assert "can't be read" in problem


@pytest.mark.parametrize("content", ["new\nold\n", "new\r\n\r\nold", "\n" * 20 + "one" + "\n" * 20])
def test_a_webhook_s_file_may_hold_several_secrets(tmp_path: Path, content: str) -> None:
    assert check_files(with_secret(tmp_path, written(tmp_path, content))) == []


def test_too_many_secrets_of_a_webhook_are_counted(tmp_path: Path) -> None:
    secret = written(tmp_path, "".join(f"secret-{n}\n" for n in range(WEBHOOK_SECRETS_MAX + 1)))
    [problem] = check_files(with_secret(tmp_path, secret))
    assert "holds 9 lines; at most 8 secrets" in problem


@pytest.mark.parametrize("line", [" hunter2", "hunter2 ", "hunter2\t"])
def test_white_space_around_a_secret_is_reported_with_its_line(tmp_path: Path, line: str) -> None:
    secret = written(tmp_path, f"first\n{line}\n")
    [problem] = check_files(with_secret(tmp_path, secret))
    assert problem.startswith(f"{KEY}: line 2 of {secret} begins or ends with white space")
    assert "hunter2" not in problem


def test_a_secret_is_never_repeated(tmp_path: Path) -> None:
    problems = check_files(with_secret(tmp_path, written(tmp_path, mode=0o644)))
    assert "hunter2" not in "".join(problems)


def test_a_file_is_reported_under_the_key_that_names_it(tmp_path: Path) -> None:
    config = tmp_path / "mirror.yaml"
    config.write_text(
        """
data_dir: .
defaults:
  credentials: {password_file: shared-token}
repositories:
  acme/a: {upstream: "https://github.com/acme/a"}
  acme/b: {upstream: "https://github.com/acme/b"}
  acme/c: {upstream: "https://github.com/acme/c", credentials: {password_file: own-token}}
"""
    )
    assert [problem.split(": ")[0] for problem in check_files(load(config))] == [
        "defaults.credentials.password_file",
        "repositories.acme/c.credentials.password_file",
    ]


def test_a_password_file_is_checked_like_any_secret(tmp_path: Path) -> None:
    settings = Settings(
        source=tmp_path / "mirror.yaml",
        data_dir=tmp_path,
        repositories={
            "app": RepositorySettings(
                name="app",
                upstream="https://github.com/acme/app",
                credentials=PasswordSettings(username="x", password_file=tmp_path / "none"),
            )
        },
    )
    [problem] = check_files(settings)
    assert problem.startswith("repositories.app.credentials.password_file: ")


def test_a_data_directory_that_can_be_made_is_no_problem(tmp_path: Path) -> None:
    assert check_files(with_data_dir(tmp_path / "a" / "b")) == []
    assert not (tmp_path / "a").exists()


def test_a_file_in_the_place_of_the_data_directory_is_reported(tmp_path: Path) -> None:
    file = written(tmp_path)
    mistake = f"data_dir: {file} is not a directory; choose another directory"
    assert check_files(with_data_dir(file)) == [mistake]
    assert check_files(with_data_dir(file / "data")) == [mistake]


def test_a_data_directory_that_can_not_be_written_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    assert check_files(with_data_dir(tmp_path)) == [
        f"data_dir: {tmp_path} can't be written to; give it to git-mirror's user"
    ]
    assert check_files(with_data_dir(tmp_path / "data")) == [
        (
            f"data_dir: {tmp_path / 'data'} can't be created in {tmp_path};"
            " create it for git-mirror's user"
        )
    ]


def test_a_data_directory_with_an_impossible_name_is_reported(tmp_path: Path) -> None:
    [problem] = check_files(with_data_dir(tmp_path / ("x" * 5000)))
    assert problem.startswith("data_dir: ")
    assert problem.endswith("choose another directory")


def test_checking_changes_nothing(tmp_path: Path) -> None:
    secret = written(tmp_path, mode=0o644)
    before = secret.stat()
    check_files(with_secret(tmp_path, secret))
    assert stat.S_IMODE(secret.stat().st_mode) == 0o644
    assert secret.stat().st_mtime_ns == before.st_mtime_ns
