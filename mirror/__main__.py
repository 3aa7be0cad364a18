"""Run the command line, as `git-mirror` and as ``python -m mirror``."""

import gc
import importlib


def main() -> None:
    """Load the commands, and run the one that was asked for."""
    # Nothing of what is loaded is garbage: to look for some meanwhile takes a sixth of the time.
    gc.disable()
    commands = importlib.import_module("mirror.cli")
    gc.freeze()
    gc.enable()
    commands.main()


if __name__ == "__main__":
    main()
