"""Which webhook a repository needs at its forge, in the forge's own words.

For people to read and make by hand; `hook_api` is what GitHub's and GitLab's programming interfaces
are told.
"""

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

_URL_CHARACTERS: Final = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True)
class HookPlan:
    """The webhook of one repository.

    Attributes:
        settings_url: The page on which it is made.
        fields: What to enter there, each label with its value, but for the secret.
        signing_label: What the secret is called there.
    """

    settings_url: str
    fields: tuple[tuple[str, str], ...]
    signing_label: str


def delivery_url(public_url: str, forge: str) -> str:
    """Return where `forge` delivers, for a mirror that it reaches at `public_url`.

    Raises:
        ValueError: That is no URL a forge could deliver to.
    """
    text = public_url.rstrip("/")
    if not _URL_CHARACTERS.fullmatch(text) or not text.startswith(("https://", "http://")):
        raise ValueError("must be a URL like https://mirror.example.com")
    try:
        parts = urlsplit(text)
        host = parts.hostname
        _ = parts.port
    except ValueError:  # its words may repeat a password
        raise ValueError("is not a valid URL; look at its host and port") from None
    if not host or "@" in parts.netloc:
        raise ValueError("must have a host, and neither user name nor password")
    if parts.query or parts.fragment:
        raise ValueError("must end with the path: no ?query and no #fragment")
    path = f"/webhooks/{forge}"
    return text if text.endswith(path) else text + path
