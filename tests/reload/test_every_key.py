"""Every key of the configuration: its change counts at once, or the outcome names it.

The table has a change for each key there is; one that is new and is not here fails.
"""

import copy
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from mirror.config import Difference, compare, parse, restart_keys
from mirror.config.models import ANY_NAME, ANY_PLACE, SECTIONS, SectionPath, keys_of

SOURCE: Final = Path("/etc/git-mirror/mirror.yaml")

BASE: Final[dict[str, Any]] = {
    "server": {
        "listen": "127.0.0.1:8470",
        "public_url": "https://git.example",
        "tls": {"certificate_file": "c", "key_file": "k", "client_ca_file": "ca"},
    },
    "data_dir": "data",
    "repositories": {
        "a": {"upstream": "https://x.example/y", "forge": "github"},
        "other": {"upstream": "https://x.example/other", "forge": "github"},
    },
    "readers": {
        "oidc": {
            "r": {
                "issuer": "https://i.example",
                "audience": "us",
                "claims": {"sub": "me"},
                "repositories": ["a"],
            }
        },
        "certificates": {"r": {"subject": "CN=r", "repositories": ["a"]}},
    },
    "relays": {"r": {"type": "webhook", "url": "https://r.example/x", "secret_file": "s"}},
    "upstreams": [{"at": "/x", "from": "https://x.example/all", "forge": "github"}],
}

SHARED: Final[dict[str, Any]] = {
    "poll_interval": "17s",
    "hold": "1s",
    "on_stale": "refuse",
    "max_age": "18s",
    "access": ["readers"],
    "push": "proxy",
    "refs": ["refs/heads/*"],
    "refs_vanish_after": "1s",
    "credentials": {"username": "u", "password_file": "p"},
    "ca_file": "ca",
    "proxy": "http://proxy.example:1",
    "proxy_credentials": {"username": "u", "password_file": "p"},
    "lfs": False,
    "webhook_secret_file": "w",
    "bundle_interval": "1h",
    "repository_bytes_max": "1GiB",
    "bundle_bytes_min": "1MiB",
}
"""What each key of `defaults`, of a repository and of a place becomes."""

NEEDS: Final[dict[str, dict[str, Any]]] = {
    "proxy_credentials": {"proxy": "http://proxy.example:1"},
    "credentials.username": {"credentials": {"username": "u", "password_file": "p"}},
    "credentials.password_file": {"credentials": {"username": "u", "password_file": "p"}},
    "credentials.github_app": {"credentials": {"netrc_file": "n"}},
    "credentials.netrc_file": {"credentials": {"netrc_file": "n"}},
    "github_app": {"credentials": {"github_app": {"app_id": "1", "private_key_file": "k"}}},
    "proxy_credentials.": {
        "proxy": "http://proxy.example:1",
        "proxy_credentials": {"username": "u", "password_file": "p"},
    },
}
"""What has to be there before, beside a key of `SHARED` or below it."""

CREDENTIALS: Final[dict[str, dict[str, Any]]] = {
    "credentials": {
        "username": "other",
        "password_file": "other",
        "github_app": {"app_id": "1", "private_key_file": "k"},
        "netrc_file": "other",
    },
    "github_app": {
        "app_id": "2",
        "private_key_file": "other",
        "installation_id": 5,
        "api": "https://api.example",
    },
    "proxy_credentials": {"username": "other", "password_file": "other"},
}

CHANGES: Final[dict[SectionPath, dict[str, Any]]] = {
    (): {
        "data_dir": "elsewhere",
        "engine": "dulwich",
        "repositories": {"a": {"upstream": "https://x.example/y", "forge": "github"}},
        "relays": {},
        "upstreams": [],
    },
    ("server",): {
        "listen": "127.0.0.1:1",
        "unix_socket": "s",
        "public_url": "https://other.example",
        "tls": {"certificate_file": "other", "key_file": "k", "client_ca_file": "ca"},
        "trusted_proxies": ["10.0.0.0/8"],
        "monitoring_from": ["10.0.0.0/8"],
        "fast_lane": False,
        "workers": 3,
        "reload_on_change": False,
        "drain_timeout": "1s",
        "upgrade_timeout": "1s",
    },
    ("server", "tls"): {
        "certificate_file": "other",
        "key_file": "other",
        "other_certificate_file": "other",
        "other_key_file": "other",
        "client_ca_file": "other",
    },
    ("readers",): {
        "oidc": {},
        "certificates": {},
        "upstream_valid": "1m",
        "upstream_outage": "1m",
    },
    ("readers", "oidc", ANY_NAME): {
        "issuer": "https://other.example",
        "audience": "them",
        "claims": {"sub": "you"},
        "repositories": ["other"],
        "jwks_url": "https://i.example/keys",
        "ca_file": "ca",
        "token_file": "t",
    },
    ("readers", "certificates", ANY_NAME): {"subject": "CN=s", "repositories": ["other"]},
    ("relays", ANY_NAME): {
        "type": "fleet",
        "url": "https://r.example/y",
        "secret_file": "t",
        "repositories": ["a"],
        "public_urls": ["https://more.example"],
        "ca_file": "ca",
        "timeout": "5s",
        "mode": "binary",
    },
    ("repositories", ANY_NAME): {"upstream": "https://x.example/z", "forge": "gitlab"},
    ("upstreams", ANY_PLACE): {
        "at": "/y",
        "from": "https://z.example/all",
        "repositories": ["b"],
        "private": True,
        "unused": "1h",
        "gone_after": "1m",
        "forge": "gitlab",
    },
    ("log",): {"format": "json", "level": "debug"},
    ("limits",): {
        "connections_max": 100,
        "refreshes_max": 3,
        "pack_builds_max": 3,
        "pack_builds_queued_max": 3,
        "pack_cache_bytes_max": "1GiB",
        "pack_cache_memory_bytes_max": "1MiB",
        "bundle_bytes_max": "1GiB",
        "disk_reserve": "2GiB",
        "repositories_bytes_max": "1GiB",
        "request_bytes_max": "1MiB",
        "pack_bytes_max": "1GiB",
        "pushes_max": 3,
        "push_bytes_max": "1GiB",
        "lfs_cache_bytes_max": "1GiB",
        "lfs_object_bytes_max": "1GiB",
        "lfs_downloads_max": 3,
        "scrub_interval": "1d",
        "scrub_bytes_per_second": "1MiB",
        "upstream_timeout": "5s",
        "upstream_bytes_per_second_min": "2KiB",
        "refresh_timeout": "5m",
        "pull_through_repositories_max": 3,
        "pull_through_bytes_max": "1GiB",
        "pull_through_per_minute": 3,
        "pull_through_per_client_per_minute": 3,
    },
}

CONTAINERS: Final = {"server", "defaults", "readers", "limits", "log"}
"""Keys of the whole that hold nothing but keys of their own."""

SHARING: Final = (("defaults",), ("repositories", ANY_NAME), ("upstreams", ANY_PLACE))


def change_of(section: SectionPath, key: str) -> tuple[dict[str, Any], Any]:
    """Return what has to be there before in the section that shares keys, and the new value."""
    own = CHANGES.get(section, {})
    if key in own:
        return {}, own[key]
    shared = next(one for one in SHARING if section[: len(one)] == one)
    below = section[len(shared) :]
    if not below:
        return NEEDS.get(key, {}), SHARED[key]
    if below[0] == "proxy_credentials":
        return NEEDS["proxy_credentials."], CREDENTIALS["proxy_credentials"][key]
    if below == ("credentials",):
        return NEEDS[f"credentials.{key}"], CREDENTIALS["credentials"][key]
    return NEEDS["github_app"], CREDENTIALS["github_app"][key]


def section_of(document: dict[str, Any], section: SectionPath) -> dict[str, Any]:
    """Return the mapping in `document` that a path stands for, made where it is not there."""
    here: Any = document
    for before, step in zip((None, *section), section, strict=False):
        if step == ANY_PLACE:
            here = here[0]
        elif step == ANY_NAME:
            here = here["a" if before == "repositories" else "r"]
        else:
            here = here.setdefault(step, {})
    found: dict[str, Any] = here
    return found


def difference_for(section: SectionPath, key: str) -> tuple[Difference, bool]:
    """Return what a change of that key comes to, and whether the running settings change."""
    before, value = change_of(section, key)
    old = copy.deepcopy(BASE)
    shared = next((one for one in SHARING if section[: len(one)] == one), None)
    if shared is not None:
        section_of(old, shared).update(copy.deepcopy(before))
    new = copy.deepcopy(old)
    changed = section_of(new, section)
    if key == "public_url":
        for one in (old, new):  # a relay may not be without
            section_of(one, ("relays", ANY_NAME))["public_urls"] = ["https://git.example"]
    if key in ("other_certificate_file", "other_key_file"):
        for one in (old, new):
            tls = section_of(one, section)
            tls.update(other_certificate_file="c2", other_key_file="k2")
    if key == "github_app":  # there is one way to sign in
        for other in ("username", "netrc_file"):
            changed.pop(other, None)
    changed[key] = value
    running, written = (parse(yaml.safe_dump(one).encode(), source=SOURCE) for one in (old, new))
    below = running.find("x/pulled")
    assert below is not None
    difference = compare(running, written, {**running.repositories, below.name: below})
    return difference, difference.settings != running


RESTARTS: Final = dict(restart_keys())


@pytest.mark.parametrize("section", list(SECTIONS), ids=lambda one: ".".join(one) or "top")
def test_a_changed_key_counts_at_once_or_is_named(section: SectionPath) -> None:
    for key in keys_of(SECTIONS[section]):
        if section == () and key in CONTAINERS:
            continue
        difference, is_changed = difference_for(section, key)
        what = RESTARTS.get((*section, key))
        if what is not None and not what.only_presence:
            assert difference.restart == (".".join((*section, key)),)
            assert not is_changed, key
            assert not difference.is_any, key
        else:
            assert difference.restart == (), key
            assert is_changed, f"the change of {key} is lost"
            assert difference.is_any, f"nobody would be told of the change of {key}"


@pytest.mark.parametrize("key", ["tls", "client_ca_file"])
def test_what_has_to_be_there_from_the_start_is_named_when_it_goes(key: str) -> None:
    new = copy.deepcopy(BASE)
    if key == "tls":
        del new["server"]["tls"]
    else:
        del new["server"]["tls"]["client_ca_file"]
    new["readers"]["certificates"] = {}
    running, written = (parse(yaml.safe_dump(one).encode(), source=SOURCE) for one in (BASE, new))
    difference = compare(running, written, running.repositories)
    assert key in [one.rpartition(".")[2] for one in difference.restart]
    assert difference.settings.tls == running.tls
