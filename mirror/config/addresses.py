"""Where the configuration may lead: upstreams, receivers, networks, the address to listen on.

Pure rules, as in `mirror.config.names`; a message never repeats what may hold a secret.
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from mirror.config.notation import Notation, shown

# Upstreams.

_URL_CHARACTERS: Final = re.compile(r"[!-\[\]-~]+")  # urlsplit drops tabs and newlines silently
_NETLOC: Final = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")


def read_upstream(text: str) -> str:
    """Return the URL of an upstream repository, without its trailing slash.

    Raises:
        ValueError: It is not an http or https URL, or carries what a URL must not.
    """
    if not text.lower().startswith(("https://", "http://")):
        raise ValueError(
            "must be a URL like `https://github.com/acme/gitops-repo.git`;"
            " SSH, git:// and files are not supported"
        )
    return _read_url(text, place="`credentials:`").rstrip("/")


def read_public_url(text: str) -> str:
    """Return the URL below which readers find the repositories, without its trailing slash.

    Raises:
        ValueError: As `read_upstream`.
    """
    return read_receiver_url(text, place="each reader").rstrip("/")


def read_receiver_url(text: str, *, place: str = "`secret_file:`") -> str:
    """Return the URL that events are sent to, as it is written.

    Raises:
        ValueError: As `read_upstream`.
    """
    if not text.lower().startswith(("https://", "http://")):
        raise ValueError("must begin with `https://` or `http://`")
    return _read_url(text, place=place)


def _read_url(text: str, *, place: str) -> str:
    """Return a URL with its scheme and host in lower case; `place` is where its secrets belong."""
    if not _URL_CHARACTERS.fullmatch(text):
        raise ValueError("holds a space or a character that a URL must percent-encode")
    if "?" in text or "#" in text:
        raise ValueError("must end with the path: no `?query` and no `#fragment`")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:  # its words may repeat a password
        raise ValueError("is not a valid URL; look at its host and port") from None
    if "@" in parts.netloc:
        raise ValueError(f"carries a user name or password; use {place} instead")
    if not host or port == 0 or not _NETLOC.fullmatch(parts.netloc):
        raise ValueError("has no valid host; write it like `https://github.com/acme/app.git`")
    return f"{parts.scheme}://{parts.netloc.lower()}{parts.path}"


UPSTREAM: Final = Notation(
    "an http or https URL",
    read_upstream,
    str,
    {
        "type": "string",
        "pattern": r"^[Hh][Tt][Tt][Pp][Ss]?://[^@?#\s\\]+$",
        "examples": ["https://github.com/acme/gitops-repo.git"],
    },
)


_URL_SCHEMA: Final = {"type": "string", "pattern": r"^[Hh][Tt][Tt][Pp][Ss]?://[^@?#\s\\]+$"}

PUBLIC_URL: Final = Notation("an http or https URL", read_public_url, str, _URL_SCHEMA)

RECEIVER_URL: Final = Notation("an http or https URL", read_receiver_url, str, _URL_SCHEMA)


def host_of(upstream: str) -> str:
    """Return the host of a URL that `read_upstream` returned, without port and brackets."""
    return urlsplit(upstream).hostname or ""


def is_in_the_clear(upstream: str) -> bool:
    """Say whether what is sent to this URL can be read on a network on its way."""
    return urlsplit(upstream).scheme != "https" and not is_own_machine(host_of(upstream))


def is_own_machine_name(host: str) -> bool:
    """Say whether a name stands for this machine, whatever is looked up (RFC 6761, 6.3)."""
    return host == "localhost" or host.endswith(".localhost")


def is_own_machine(host: str) -> bool:
    """Say whether a host, or an address to listen on, is reached from this machine only."""
    if is_own_machine_name(host):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_secure_url(text: str) -> str:
    """Return a URL, as it is written, that is https or leads to this machine.

    Raises:
        ValueError: As `read_upstream`, or it could be read on its way.
    """
    read_receiver_url(text)
    if is_in_the_clear(text):
        raise ValueError("must begin with `https://`, unless the host is this machine")
    return text


SECURE_URL: Final = Notation(
    "an https URL",
    read_secure_url,
    str,
    {"type": "string", "pattern": r"^[Hh][Tt][Tt][Pp][Ss]?://[^@?#\s\\]+$"},
)


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def read_network(text: str) -> Network:
    """Return a network or a single address.

    Raises:
        ValueError: It is neither.
    """
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        raise ValueError(
            f"{shown(text)} is no network; write it like `10.20.0.0/16`, `10.20.0.5` or `fd00::/8`,"
            " with zeros behind its length"
        ) from None


NETWORK: Final = Notation(
    "a network, like `10.20.0.0/16`, or an address",
    read_network,
    str,
    {"type": "string", "pattern": r"^[0-9A-Fa-f:.]+(/[0-9]{1,3})?$"},
)


# The address to listen on.


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where the service accepts connections. Port 0 lets the system choose one."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


_LISTEN: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9.-]+)):([0-9]{1,5})")


def read_listen_address(text: str) -> ListenAddress:
    """Return the address `host:port`, with the brackets of IPv6 taken off.

    Raises:
        ValueError: It is something else.
    """
    found = _LISTEN.fullmatch(text)
    if found is None:
        raise ValueError(
            f"{shown(text)} is not `host:port`; write it like `127.0.0.1:8470`, `0.0.0.0:8470`"
            ' (every IPv4 address) or, in quotes, `"[::]:8470"` (every address)'
        )
    version_6, host, port = found[1], found[2], int(found[3])
    if port > 65535:
        raise ValueError(f"the port {port} is over 65535")
    try:
        if version_6:
            ipaddress.IPv6Address(version_6)
        elif host.replace(".", "").isdigit():
            ipaddress.IPv4Address(host)
    except ValueError:
        raise ValueError(f"{shown(version_6 or host)} is not an IP address") from None
    return ListenAddress(version_6 or host, port)


LISTEN_ADDRESS: Final = Notation(
    "`host:port`, IPv6 in brackets",
    read_listen_address,
    str,
    {
        "type": "string",
        "pattern": _LISTEN.pattern.join(("^", "$")),
        "examples": ["127.0.0.1:8470", "[::]:8470"],
    },
    ListenAddress,
)
