"""The matrix of clients: its rows, and each cell that is not run, with the client's own reason.

`docs/compatibility.md` is written from here (`make docs`), and `test_matrix` runs every cell, so
neither can say what the other does not.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.clients.builds import program
from tests.clients.git_cli import ArgoCd, Git, Kustomize, machine_git, newest_git
from tests.clients.libraries import Dulwich, Libgit2
from tests.clients.operations import Client, Operation
from tests.clients.programs import Flux, PlainProgram

ENGINES: Final = ("git", "dulwich", "auto")
"""Who makes the packs; `auto` is one or the other, and comes with `--all-engines`."""


@dataclass(frozen=True, slots=True)
class Row:
    """A client and the protocol that it speaks.

    Attributes:
        name: What the row is called, unique.
        protocol: The version that it asks for when it fetches.
        build: Makes the client, given its home; raises `Unavailable` where there is none.
        limits: What the client never does by itself, and why.
        pin: The file, from here, and the package in it that say which version is tried.
        source: In place of a pin, where the client comes from.
        note: What an operator may want to know of how it works.
    """

    name: str
    protocol: int
    build: Callable[[Path], Client]
    limits: Mapping[Operation, str] = field(default_factory=dict)
    pin: tuple[str, str] | None = None
    source: str = ""
    note: str = ""

    @property
    def operations(self) -> list[Operation]:
        """What is run: all that the client ever does."""
        return [operation for operation in Operation if operation not in self.limits]


def _git(protocol: int) -> Row:
    return Row(
        f"git, v{protocol}",
        protocol,
        lambda home: Git(machine_git(), home, protocol),
        source="the machine's",
    )


def _newest_git(protocol: int) -> Row:
    return Row(
        f"newest git, v{protocol}",
        protocol,
        lambda home: Git(newest_git(), home, protocol),
        source="Debian sid's",
    )


def _dulwich(protocol: int) -> Row:
    return Row(
        f"dulwich, v{protocol}",
        protocol,
        lambda home: Dulwich(protocol),
        pin=("../../requirements/run.lock", "dulwich"),
    )


def _go_git(name: str, home: Path) -> PlainProgram:
    # Of a single branch it keeps no name but HEAD's.
    return PlainProgram(program(name), home, one_commit="HEAD")


ROWS: Final = (
    *(_git(protocol) for protocol in (0, 1, 2)),
    *(_newest_git(protocol) for protocol in (0, 1, 2)),
    Row(
        "Argo CD",
        2,
        lambda home: ArgoCd(_go_git("gogit5", home), machine_git(), home),
        source="go-git v5 and the machine's git",
        note="Lists with go-git v5, fetches with git as its repo-server does.",
    ),
    Row(
        "Flux",
        0,
        lambda home: Flux(program("flux"), home),
        limits={
            Operation.LIST: "Flux lists only to compare one ref with what it saw last.",
        },
        pin=("flux/go.mod", "github.com/fluxcd/pkg/git"),
        note="`fluxcd/pkg/git/gogit` (the version named) with source-controller's options; a fetch "
        "is a new clone. `ref.semver` fails wherever a tag points to anything but a commit (to a "
        "tag, for one): go-git does not follow that, whoever serves it.",
    ),
    Row(
        "kustomize",
        2,
        lambda home: Kustomize(machine_git(), home),
        limits={
            Operation.LIST: "kustomize never lists refs.",
            Operation.CLONE: "kustomize never asks for history.",
        },
        source="the machine's git",
        note="A remote base: `git fetch --depth=1 <url> <ref>`, anew for every build.",
    ),
    Row(
        "go-git v5",
        0,
        lambda home: _go_git("gogit5", home),
        pin=("gogit5/go.mod", "github.com/go-git/go-git/v5"),
        note="With its defaults: no `multi_ack`.",
    ),
    Row(
        "go-git v6",
        2,
        lambda home: _go_git("gogit6", home),
        pin=("gogit6/go.mod", "github.com/go-git/go-git/v6"),
        note="With its defaults: v2 by its own choice.",
    ),
    Row(
        "libgit2",
        0,
        lambda home: Libgit2(),
        pin=("../../requirements/dev.lock", "pygit2"),
        note="By pygit2, whose version is named.",
    ),
    Row(
        "JGit",
        2,
        lambda home: PlainProgram(program("jgit"), home),
        pin=("jgit/pom.xml", "org.eclipse.jgit"),
        note="As Jenkins has it, among others.",
    ),
    Row(
        "isomorphic-git",
        0,
        lambda home: PlainProgram(program("isomorphic"), home),
        pin=("isomorphic/package.json", "isomorphic-git"),
        note="Lists with v2, fetches with v0.",
    ),
    *(_dulwich(protocol) for protocol in (0, 2)),
)

CELLS: Final = tuple((row, operation) for row in ROWS for operation in row.operations)
