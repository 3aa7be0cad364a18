"""The command line: `git-mirror COMMAND`, also as `git mirror COMMAND`.

    root           the group of all commands
    running        what every command needs: the configuration, logs, one way to run and to fail
    serve          serve, worker, demo
    control        how a command asks the running service
    scheduling     how soon the kernel lets the event loop run
    ending         what `serve` is told by signals
    sync           sync
    reload         reload
    upgrade        upgrade
    status         status
    doctor         doctor
    fsck           fsck
    configuration  check, config schema, config reference
    webhook        webhook install
    token          token create, list, revoke

Exit codes: 0 all well; 1 something is wrong and said so; 2 a mistake on the command line.
"""

from mirror.cli import (
    configuration,
    doctor,
    fsck,
    reload,
    serve,
    status,
    sync,
    token,
    upgrade,
    webhook,
)
from mirror.cli.root import main

__all__ = [
    "configuration",
    "doctor",
    "fsck",
    "main",
    "reload",
    "serve",
    "status",
    "sync",
    "token",
    "upgrade",
    "webhook",
]
