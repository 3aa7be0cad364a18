"""The real git client, and a quick way to give it something to fetch.

Neither reads the user's or the system's configuration.
"""

import asyncio
import contextlib
import os
import signal
import stat
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

GIT_SECONDS_MAX: Final = 90.0

FIRST_COMMIT_AT: Final = 1_750_000_000
"""Dates are counted from here, so that object ids are the same on every run."""

COMMIT_SECONDS: Final = 60
"""From each commit to the next."""

# Not the default executor: the server under test may need that while every client waits for it.
_THREADS: Final = ThreadPoolExecutor(max_workers=64, thread_name_prefix="git-client")


class GitFailed(Exception):
    """git exited with an error; the message holds all it said."""

    def __init__(self, completed: "Completed", trouble: str | None = None) -> None:
        super().__init__(
            f"git {' '.join(completed.args)} {trouble or f'exited with {completed.returncode}'}\n"
            f"--- stdout\n{completed.stdout}\n--- stderr\n{completed.stderr}"
        )
        self.completed = completed


@dataclass(frozen=True, slots=True)
class Completed:
    args: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str


def environment(home: Path) -> dict[str, str]:
    """Return an environment without the user's and the system's settings, proxies and prompts."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home),
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "",
        "GIT_ADVICE": "0",
        "GIT_AUTHOR_NAME": "Test Author",
        "GIT_AUTHOR_EMAIL": "author@example.com",
        "GIT_COMMITTER_NAME": "Test Committer",
        "GIT_COMMITTER_EMAIL": "committer@example.com",
    }


class GitClient:
    """Runs the git command line, in threads, so that the loop which serves it keeps turning."""

    def __init__(
        self,
        workdir: Path,
        version: int | None = None,
        *,
        config: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
        program: str = "git",
    ) -> None:
        """Args:
        workdir: Clones go here, each in a directory of its own.
        version: protocol.version; `None` leaves git's default.
        config: More settings for every command.
        env: More of the environment, such as GIT_TRACE_PACKET.
        program: The git to run.
        """
        self._program = program
        self.workdir = workdir
        self.version = version
        self._home = workdir / "home"
        self._home.mkdir(parents=True, exist_ok=True)
        self._env = environment(self._home) | dict(env or {})
        self._config = {
            "init.defaultBranch": "main",
            "advice.detachedHead": "false",
            "gc.auto": "0",
        }
        if version is not None:
            self._config["protocol.version"] = str(version)
        self._config |= dict(config or {})
        self._clones = 0
        self._commits = 0

    async def run(
        self,
        *args: str,
        cwd: Path | None = None,
        check: bool = True,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = GIT_SECONDS_MAX,
    ) -> Completed:
        """Run one git command. Cancelled or timed out, git and its children are killed."""
        settings = [
            word for key, value in self._config.items() for word in ("-c", f"{key}={value}")
        ]
        loop = asyncio.get_running_loop()
        starting = loop.run_in_executor(
            _THREADS,
            lambda: subprocess.Popen(
                [self._program, *settings, *args],
                cwd=cwd or self.workdir,
                env=self._env | dict(env or {}),
                stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="surrogateescape",
                process_group=0,
            ),
        )
        ending: asyncio.Future[tuple[str, str]] | None = None
        try:
            process = await asyncio.shield(starting)
            ending = loop.run_in_executor(_THREADS, process.communicate, stdin)
            async with asyncio.timeout(timeout):
                stdout, stderr = await asyncio.shield(ending)
        except BaseException as error:
            process = await starting
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            stdout, stderr = await (ending or loop.run_in_executor(_THREADS, process.communicate))
            if isinstance(error, TimeoutError):
                completed = Completed(args, process.returncode, stdout, stderr)
                raise GitFailed(completed, f"took longer than {timeout} s") from error
            raise
        completed = Completed(args, process.returncode, stdout, stderr)
        if check and completed.returncode != 0:
            raise GitFailed(completed)
        return completed

    async def output(self, *args: str, cwd: Path | None = None) -> str:
        """Return what a command prints, without white space at its ends."""
        return (await self.run(*args, cwd=cwd)).stdout.strip()

    async def ls_remote(self, url: str, *args: str) -> dict[str, str]:
        """Return object ids by ref name, peeled tags as ``name^{}``. Symrefs are left out."""
        lines = (await self.run("ls-remote", *args, url)).stdout.splitlines()
        pairs = [line.split("\t") for line in lines if not line.startswith("ref: ")]
        return {name: oid for oid, name in pairs}

    async def default_branch(self, url: str) -> str | None:
        """Return what the remote's HEAD points to, as announced."""
        lines = (await self.run("ls-remote", "--symref", url, "HEAD")).stdout.splitlines()
        targets = [line.split("\t")[0] for line in lines if line.startswith("ref: ")]
        return targets[0].removeprefix("ref: ") if targets else None

    async def clone(self, url: str, *args: str, name: str | None = None) -> Path:
        """Clone into a new directory below the work directory and return it."""
        self._clones += 1
        path = self.workdir / (name or f"clone-{self._clones}")
        await self.run("clone", "--quiet", *args, url, str(path))
        return path

    async def fetch(self, repository: Path, *args: str) -> Completed:
        """Fetch from origin, or from whatever `args` say."""
        return await self.run("fetch", *(args or ("origin",)), cwd=repository)

    async def rev_parse(self, repository: Path, revision: str) -> str:
        return await self.output("rev-parse", "--verify", revision, cwd=repository)

    async def fsck(self, repository: Path) -> None:
        """Check every object and connection, strictly; raises `GitFailed`."""
        await self.run("fsck", "--strict", "--full", "--no-dangling", cwd=repository)

    async def refs(self, repository: Path) -> dict[str, str]:
        """Return the refs of a local repository, tags not peeled."""
        listing = await self.output(
            "for-each-ref", "--format=%(refname) %(objectname)", cwd=repository
        )
        return dict(line.split(" ") for line in listing.splitlines())

    async def commit_file(self, repository: Path, path: str, content: str, message: str) -> str:
        """Commit one file on the branch that is checked out and return the commit."""
        file = repository / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
        self._commits += 1
        date = f"{FIRST_COMMIT_AT + COMMIT_SECONDS * self._commits} +0000"
        await self.run("add", "--", path, cwd=repository)
        await self.run(
            "commit",
            "--quiet",
            "--message",
            message,
            cwd=repository,
            env={"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date},
        )
        return await self.rev_parse(repository, "HEAD")


@dataclass(frozen=True, slots=True)
class _Picture:
    """All that is in a directory. Git makes a repository once; copies take a tenth of its time.

    Attributes:
        directories: Their paths in it, the outer ones first.
        files: The contents and modes of files, by path.
    """

    directories: tuple[Path, ...]
    files: Mapping[Path, tuple[bytes, int]]

    @classmethod
    def of(cls, path: Path) -> "_Picture":
        found = sorted(path.rglob("*"))
        return cls(
            tuple(one.relative_to(path) for one in found if one.is_dir()),
            {
                one.relative_to(path): (one.read_bytes(), stat.S_IMODE(one.stat().st_mode))
                for one in found
                if one.is_file()
            },
        )

    def lay_out(self, path: Path) -> None:
        """Put it all into a directory, in place of what is there."""
        for one in self.directories:
            (path / one).mkdir(exist_ok=True)
        for one, (content, mode) in self.files.items():
            file = path / one
            file.write_bytes(content)
            file.chmod(mode)


_MADE: Final[dict[tuple[str, str] | None, _Picture]] = {}
"""Upstreams as they are at first, by default branch and object format; `None`: `Upstream.begun`."""


class Upstream:
    """A bare repository below the root of a forge, changed with plumbing: milliseconds a step.

    Every method blocks for that long, which a test can afford. Revisions are whatever git resolves.
    """

    def __init__(
        self,
        root: Path,
        name: str = "acme/gitops-repo",
        *,
        branch: str = "main",
        object_format: str = "sha1",
    ) -> None:
        """Create ``root/<name>.git``, empty, with HEAD on `branch`, as open as forges are."""
        self.name = name
        self.path = root / f"{name}.git"
        self._clock = FIRST_COMMIT_AT
        self._env = environment(root)
        self.path.mkdir(parents=True)
        made = _MADE.get((branch, object_format))
        if made is not None:
            made.lay_out(self.path)
            return
        options = (f"--initial-branch={branch}", f"--object-format={object_format}")
        self.git("init", "--quiet", "--bare", "--template=", *options, ".")
        self.config("http.receivepack", "true")
        self.config("uploadpack.allowFilter", "true")
        self.config("uploadpack.allowAnySHA1InWant", "true")
        self.config("gc.auto", "0")
        _MADE[branch, object_format] = _Picture.of(self.path)

    @classmethod
    def begun(cls, root: Path) -> "Upstream":
        """Create the repository acme/gitops-repo with one commit on main."""
        upstream = cls(root)
        if (begun := _MADE.get(None)) is not None:
            begun.lay_out(upstream.path)
            upstream._clock += COMMIT_SECONDS
            return upstream
        upstream.commit(
            files={"base/app.yaml": "image: web:1.0.0\n", "README.md": "# GitOps\n"},
            message="Begin",
        )
        _MADE[None] = _Picture.of(upstream.path)
        return upstream

    def git(self, *args: str, stdin: str | bytes = b"") -> str:
        """Run git in the repository and return what it prints, stripped."""
        completed = subprocess.run(
            ["git", *args],
            cwd=self.path,
            env=self._env | self._dates(),
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            capture_output=True,
            check=False,
            timeout=GIT_SECONDS_MAX,
        )
        stdout, stderr = (
            output.decode("utf-8", "surrogateescape")
            for output in (completed.stdout, completed.stderr)
        )
        if completed.returncode != 0:
            raise GitFailed(Completed(args, completed.returncode, stdout, stderr))
        return stdout.strip()

    def config(self, key: str, value: str) -> None:
        """Set one setting of the repository."""
        self.git("config", key, value)

    def commit(
        self,
        ref: str = "main",
        files: Mapping[str, str | bytes | None] | None = None,
        *,
        message: str = "Change",
        parents: Sequence[str] | None = None,
    ) -> str:
        """Commit onto a branch, made when it is new, and return the commit.

        Args:
            ref: A branch name, or a full ref name.
            files: Contents by path; `None` deletes. Nothing given changes one file.
            message: The commit's message.
            parents: In place of the branch's tip; none at all, ``[]``, makes a new root. The first
                parent's files stay. The branch moves, fast-forward or not.
        """
        return self._import(_full(ref), [(files, message)], parents)[0]

    def history(self, count: int, ref: str = "main") -> list[str]:
        """Add `count` commits to a branch in one go and return them, the oldest first."""
        return self._import(_full(ref), [(None, "Change")] * count, None)

    def tag(
        self, name: str, target: str = "main", *, annotated: bool = True, message: str = "Release"
    ) -> str:
        """Tag `target` (which may be a tag) and return what the tag ref points to."""
        note = ["--annotate", f"--message={message}"] if annotated else []
        self.git("tag", "--force", *note, name, target)
        return self.oid(f"refs/tags/{name}")

    def force(self, ref: str, target: str) -> str:
        """Point a branch or full ref name to `target`, fast-forward or not, and return its id."""
        oid = self.oid(target)
        self.git("update-ref", _full(ref), oid)
        return oid

    def branches(self, targets: Mapping[str, str]) -> None:
        """Create or force many branches (or full ref names) at once."""
        updates = [f"update {_full(name)} {oid}\n" for name, oid in targets.items()]
        self.git("update-ref", "--stdin", stdin="".join(updates))

    def delete_ref(self, ref: str) -> None:
        """Delete a branch or full ref name."""
        self.git("update-ref", "-d", _full(ref))

    def set_head(self, branch: str) -> None:
        """Make `branch` the default branch, whether or not it exists."""
        self.git("symbolic-ref", "HEAD", _full(branch))

    def oid(self, revision: str = "main") -> str:
        """Return the object id of a revision."""
        return self.git("rev-parse", "--verify", revision)

    def refs(self) -> dict[str, str]:
        """Return object ids by ref name: what `ls-remote` shows, without HEAD and peeled tags."""
        listing = self.git("for-each-ref", "--format=%(refname) %(objectname)")
        return dict(line.split(" ") for line in listing.splitlines())

    def _import(
        self,
        ref: str,
        commits: Sequence[tuple[Mapping[str, str | bytes | None] | None, str]],
        parents: Sequence[str] | None,
    ) -> list[str]:
        if parents is None:
            first, others = self._tip(ref), []
        else:
            first, *others = [self.oid(f"{parent}^0") for parent in parents] or [""]
        stream = bytearray(b"feature done\n")
        # Without a reset, a new root would get the branch's tip as its parent.
        stream += f"reset {ref}\n".encode()
        for mark, (files, message) in enumerate(commits, start=1):
            self._clock += COMMIT_SECONDS
            stream += f"commit {ref}\nmark :{mark}\n".encode()
            stream += f"author Test Author <author@example.com> {self._clock} +0000\n".encode()
            stream += (
                f"committer Test Committer <committer@example.com> {self._clock} +0000\n".encode()
            )
            stream += _data(f"{message}\n".encode())
            if mark == 1 and first:
                stream += f"from {first}\n".encode()
                stream += "".join(f"merge {other}\n" for other in others).encode()
            changes = {"counter.txt": f"{self._clock}\n"} if files is None else files
            for path, content in changes.items():
                if content is None:
                    stream += f'D "{path}"\n'.encode()
                else:
                    raw = content.encode() if isinstance(content, str) else content
                    stream += f'M 100644 inline "{path}"\n'.encode() + _data(raw)
        stream += b"".join(b"get-mark :%d\n" % mark for mark in range(1, len(commits) + 1))
        stream += b"done\n"
        return self.git("fast-import", "--quiet", "--force", stdin=bytes(stream)).splitlines()

    def _tip(self, ref: str) -> str:
        """Return the object id of a full ref name, read as git keeps it; empty where it is none."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
            found = (self.path / ref).read_text("ascii").strip()
            return self.oid(ref) if found.startswith("ref:") else found
        with contextlib.suppress(FileNotFoundError):
            for line in (
                (self.path / "packed-refs").read_text("utf-8", "surrogateescape").splitlines()
            ):
                oid, _, name = line.partition(" ")
                if name == ref:
                    return oid
        return ""

    def _dates(self) -> dict[str, str]:
        date = f"{self._clock} +0000"
        return {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}


def _full(ref: str) -> str:
    return ref if ref.startswith("refs/") else f"refs/heads/{ref}"


def _data(content: bytes) -> bytes:
    return b"data %d\n%b\n" % (len(content), content)
