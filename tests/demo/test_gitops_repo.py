"""The demo's repository: real, the same on every machine, and changed as CI changes it."""

from pathlib import Path

import pytest
import yaml

from mirror.demo import gitops_repo
from mirror.demo.forge import HttpBackend
from mirror.errors import LocalError
from tests.git_client import GitClient


@pytest.fixture
def bare(upstream_root: Path) -> Path:
    path = upstream_root / f"{gitops_repo.NAME}.git"
    gitops_repo.create(path)
    return path


async def test_it_is_a_sound_repository_with_branches_and_both_kinds_of_tag(
    bare: Path, git_client: GitClient
) -> None:
    await git_client.fsck(bare)
    refs = await git_client.refs(bare)
    assert set(refs) == {
        "refs/heads/main",
        "refs/heads/staging",
        "refs/tags/last-known-good",
        "refs/tags/v1.0.0",
    }
    assert await git_client.output("symbolic-ref", "HEAD", cwd=bare) == "refs/heads/main"
    assert await git_client.output("cat-file", "-t", "v1.0.0", cwd=bare) == "tag"
    assert await git_client.output("cat-file", "-t", "last-known-good", cwd=bare) == "commit"
    assert int(await git_client.output("rev-list", "--count", "main", cwd=bare)) >= 30
    assert (
        await git_client.output("merge-base", "main", "staging", cwd=bare)
        != refs["refs/heads/main"]
    )


def test_it_is_the_same_on_every_machine(tmp_path: Path) -> None:
    tip = gitops_repo.create(tmp_path / "a.git")
    assert tip == "51ae04235d0a640a21853b76dde7b514092005d3"
    assert gitops_repo.create(tmp_path / "b.git") == tip


def test_it_owes_nothing_to_the_configuration_of_who_runs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "gitconfig"
    settings.write_text("[init]\n\tdefaultBranch = other\n[core]\n\trepositoryFormatVersion = 99\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    gitops_repo.create(tmp_path / "a.git")
    assert (tmp_path / "a.git" / "HEAD").read_text() == "ref: refs/heads/main\n"


async def test_its_files_are_yaml_that_refers_to_files_that_exist(
    bare: Path, git_client: GitClient
) -> None:
    clone = await git_client.clone(str(bare))
    for directory in ("base", "overlays/dev", "overlays/prod-oslo"):
        kustomization = yaml.safe_load((clone / directory / "kustomization.yaml").read_text())
        paths = kustomization["resources"] + [
            patch["path"] for patch in kustomization.get("patches", [])
        ]
        assert all((clone / directory / path).exists() for path in paths)
    for cluster in ("oslo-01", "bergen-dr"):
        application = yaml.safe_load((clone / "clusters" / cluster / "web.yaml").read_text())
        assert (clone / application["spec"]["source"]["path"]).is_dir()
        kinds = [
            document["kind"]
            for document in yaml.safe_load_all(
                (clone / "clusters" / cluster / "flux-system" / "gotk-sync.yaml").read_text()
            )
        ]
        assert kinds == ["GitRepository", "Kustomization"]


async def test_a_bump_is_one_commit_on_main_that_changes_one_line(
    bare: Path, git_client: GitClient
) -> None:
    before = (await git_client.refs(bare))["refs/heads/main"]
    bump = gitops_repo.bump_image_tag(bare, "1.13.0")
    assert bump.parent == before
    assert (await git_client.refs(bare))["refs/heads/main"] == bump.commit
    assert await git_client.rev_parse(bare, f"{bump.commit}^") == before
    changes = await git_client.output("diff", "--numstat", before, bump.commit, cwd=bare)
    assert changes == f"1\t1\t{gitops_repo.RELEASE_FILE}"
    text = await git_client.output("show", f"main:{gitops_repo.RELEASE_FILE}", cwd=bare)
    assert yaml.safe_load(text)["images"][0]["newTag"] == "1.13.0"
    await git_client.fsck(bare)


def test_bumps_follow_one_another(bare: Path) -> None:
    first = gitops_repo.bump_image_tag(bare, "1.13.0")
    second = gitops_repo.bump_image_tag(bare, r"1.13.1-rc\1")
    assert second.parent == first.commit


def test_a_bump_to_the_tag_that_runs_is_refused(bare: Path) -> None:
    gitops_repo.bump_image_tag(bare, "1.13.0")
    with pytest.raises(ValueError, match=r"already says newTag: 1\.13\.0"):
        gitops_repo.bump_image_tag(bare, "1.13.0")


def test_what_git_says_is_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match=r"git rev-parse failed .*not a git repository"):
        gitops_repo.bump_image_tag(tmp_path, "1.13.0")


async def test_it_is_fetched_from_the_forge_and_takes_pushes(
    bare: Path, forge: HttpBackend, git_client: GitClient
) -> None:
    clone = await git_client.clone(forge.repository_url(gitops_repo.NAME), "--filter=blob:none")
    bump = gitops_repo.bump_image_tag(bare, "1.13.0")
    await git_client.fetch(clone)
    assert await git_client.rev_parse(clone, "origin/main") == bump.commit
    await git_client.run("push", "--quiet", "origin", "HEAD:refs/heads/new", cwd=clone)
    assert "refs/heads/new" in await git_client.refs(bare)
