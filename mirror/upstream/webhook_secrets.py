"""The secrets of a webhook: one a line, so that a new one can stand beside the old one for a while.

A rotation is then one change of one file, which a mounted Kubernetes secret and a systemd
credential are, and no change of the configuration. The first line is the current secret.
"""

from pathlib import Path

from mirror.config import WEBHOOK_SECRETS_MAX
from mirror.upstream.credentials import Secret, SecretFile


class WebhookSecrets:
    """The secrets in a file, read anew when the file changes."""

    def __init__(self, path: Path) -> None:
        self._file = SecretFile(path)
        self._content: Secret | None = None
        self._secrets: tuple[Secret, ...] = ()

    @property
    def path(self) -> Path:
        """The file."""
        return self._file.path

    def read(self) -> tuple[Secret, ...]:
        """Return the secrets in the order of their lines: at least one, no empty one.

        Raises:
            OSError: The file can't be read.
            ValueError: It holds no secret, or more than `WEBHOOK_SECRETS_MAX`.
        """
        content = self._file.read()
        if content is not self._content:
            self._secrets = self._split(content)
            self._content = content
        return self._secrets

    def _split(self, content: Secret) -> tuple[Secret, ...]:
        lines = (line.rstrip(b"\r") for line in content.reveal().split(b"\n"))
        secrets = tuple(Secret(line) for line in lines if line.strip())
        if not secrets:
            raise ValueError(f"{self.path} is empty")
        if len(secrets) > WEBHOOK_SECRETS_MAX:
            raise ValueError(
                f"{self.path} holds {len(secrets)} lines; at most {WEBHOOK_SECRETS_MAX} secrets, "
                "one a line, can be in use at once"
            )
        return secrets
