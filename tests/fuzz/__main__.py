"""Fuzzes the parsers, guided by coverage: `make fuzz`, which docs/fuzzing.md explains.

Each parser has a process of its own, one after the other. New inputs collect in `.fuzz/<parser>`,
where a finding is left too; `--keep` adds to tests/fuzz/corpus what reaches code that nothing there
reaches yet.
"""

import argparse
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

CORPUS: Final = Path(__file__).parent / "corpus"
FOUND: Final = Path(".fuzz")

INPUT_BYTES_MAX: Final = 4096
INPUT_SECONDS_MAX: Final = 10
MEMORY_MEGABYTES_MAX: Final = 1024


def main() -> int:
    """Run; returns the exit status: 1 where something was found."""
    arguments = _arguments()
    if arguments.child:
        _fuzz(arguments.names[0], arguments.child)
        return 0
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not to be had here: Linux on x86_64 and Python before 3.14 have it")
        return 1
    known = sorted(importlib.import_module("tests.fuzz.targets").TARGETS)
    unknown = set(arguments.names) - set(known)
    if unknown:
        print(f"no parser {', '.join(sorted(unknown))}; known are {', '.join(known)}")
        return 1
    broken = [
        name
        for name in arguments.names or known
        if not _run(name, seconds=arguments.seconds_each, keep=arguments.keep)
    ]
    if broken:
        print(f"found something in: {', '.join(broken)}; see {FOUND}/<parser>/")
    return int(bool(broken))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("names", nargs="*", help="parsers; all of them where none is named")
    parser.add_argument("--seconds-each", type=int, default=30)
    parser.add_argument("--keep", action="store_true", help="add to the kept corpus")
    parser.add_argument("--child", action="append", default=[], help=argparse.SUPPRESS)
    return parser.parse_args()


def _run(name: str, *, seconds: int, keep: bool) -> bool:
    """Fuzz one parser; returns whether nothing was found."""
    work, kept = FOUND / name, CORPUS / name
    for directory in (work / "corpus", kept):
        directory.mkdir(parents=True, exist_ok=True)
    print(f"--- {name}", flush=True)
    is_well = _child(
        name,
        f"-max_total_time={seconds}",
        f"-max_len={INPUT_BYTES_MAX}",
        f"-timeout={INPUT_SECONDS_MAX}",
        f"-rss_limit_mb={MEMORY_MEGABYTES_MAX}",
        f"-artifact_prefix={work}/",
        "-print_final_stats=1",
        "-verbosity=1",
        str(work / "corpus"),
        str(kept),
    )
    if is_well and keep:
        _child(name, "-merge=1", str(kept), str(work / "corpus"))
    return is_well


def _child(name: str, *options: str) -> bool:
    command = [sys.executable, "-m", "tests.fuzz", name]
    command += [f"--child={option}" for option in options]
    return subprocess.run(command, check=False).returncode == 0


def _launcher(name: str) -> Path:
    """Write what libFuzzer starts where it needs more processes, to merge: this program again."""
    launcher = (FOUND / name / "run").absolute()
    launcher.write_text(
        '#!/bin/sh\nfor option; do set -- "$@" "--child=$option"; shift; done\n'
        f'exec "{sys.executable}" -m tests.fuzz {name} "$@"\n'
    )
    launcher.chmod(0o700)
    return launcher


def _fuzz(name: str, options: list[str]) -> None:
    """Hand this process over to libFuzzer, which ends it."""
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["mirror"]):
        targets = importlib.import_module("tests.fuzz.targets").TARGETS
    atheris.Setup([str(_launcher(name)), *options], targets[name])
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
