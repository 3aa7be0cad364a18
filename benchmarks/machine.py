"""Where a run was made: what one must know to read its figures."""

import os
import platform
import subprocess
from pathlib import Path

from benchmarks.tools import path_of
from mirror import __version__


def describe() -> dict[str, str]:
    """Return facts by name; nothing that tells whose machine it is."""
    return {
        "processor": f"{os.cpu_count()} x {_field('/proc/cpuinfo', 'model name')}",
        "memory": f"{int(_field('/proc/meminfo', 'MemTotal').split()[0]) / 1024**2:.0f} GiB",
        "system": f"{_field('/etc/os-release', 'PRETTY_NAME', '=')}, Linux {platform.release()}",
        "busy before the run": f"{os.getloadavg()[0]:.1f} processes (load average)",
        "git-mirror": __version__,
        "Python": platform.python_version(),
        "git": _said("git", "--version").removeprefix("git version "),
        "nginx": _said("nginx", "-v").rpartition("/")[2],
        "wrk": _said("wrk", "-v").partition(" [")[0].removeprefix("wrk "),
    }


def _field(file: str, name: str, separator: str = ":") -> str:
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        lines = []
    values = [line.partition(separator)[2] for line in lines if line.startswith(name)]
    return values[0].strip().strip('"') if values else "0 unknown"


def _said(program: str, argument: str) -> str:
    if path_of(program) is None:
        return "none"
    done = subprocess.run(
        [path_of(program), argument], capture_output=True, text=True, check=False, timeout=10
    )
    return (done.stdout + done.stderr).strip().splitlines()[0]
