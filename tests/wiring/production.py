"""The configuration for production, as the mirror reads it."""

import functools
import shutil
from pathlib import Path

from mirror.config import Settings, load
from tests.certificates import Authority
from tests.wiring.pasted import PRODUCTION


@functools.cache
def settings() -> Settings:
    """Return what applies with `config/production.yaml`."""
    return load(PRODUCTION)


def installed(directory: Path) -> Path:
    """Put the configuration into a directory, as docs/wiring.md has it, and return the file."""
    file = directory / "mirror.yaml"
    shutil.copy(PRODUCTION, file)
    for folder in ("secrets", "tls"):
        (directory / folder).mkdir()
    for name in ("github-token", "github-webhook", "argocd-webhook", "flux-receiver"):
        secret = directory / "secrets" / name
        secret.write_text(f"what nobody knows: {name}\n")
        secret.chmod(0o600)
    authority = Authority.make(directory / "tls")
    shutil.copy(authority.file, directory / "tls" / "kube-oslo-ca.crt")
    pair = authority.issue(directory / "tls")
    for name in ("tls.crt", "tls.key"):  # certificate and key may stand in one file
        shutil.copy(pair, directory / "tls" / name)
        (directory / "tls" / name).chmod(0o600)
    return file
