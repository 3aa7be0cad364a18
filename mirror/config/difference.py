"""What a new configuration changes for a service that runs by another. Pure.

Which keys need a restart stands beside the keys themselves (`NeedsRestart`); here is only what to
do about it: they stay as they are, and the rest is applied.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from mirror.config.addresses import is_own_machine
from mirror.config.models import SECTIONS, SectionPath, keys_of
from mirror.config.readers import AccessKind
from mirror.config.section import NeedsRestart
from mirror.config.settings import RepositorySettings, Settings

_PLACES: Final[Mapping[SectionPath, Callable[[Settings], object]]] = {
    (): lambda settings: settings,
    ("limits",): lambda settings: settings.limits,
    ("server",): lambda settings: settings.server,
    ("server", "tls"): lambda settings: settings.tls,
}
"""Where the sections with such keys are."""

_RESOLVED: Final[Mapping[SectionPath, Callable[[Settings], object]]] = {
    ("server", "tls"): lambda settings: settings.tls,
    ("server", "unix_socket"): lambda settings: settings.unix_socket,
}
"""Keys whose value is not the one that stands in their section."""

_PARTS: Final = ("server", "tls", "readers", "relays", "upstreams", "limits", "log")


@dataclass(frozen=True, slots=True)
class Difference:
    """What is to be done.

    Attributes:
        settings: What applies from now on: the new configuration, but for what needs a restart.
        restart: The keys of that, as users write them.
        added: Repositories that are new, or that another repository takes the place of.
        removed: The names of those that are gone, or that another one takes the place of.
        changed: Those that stay, with their new settings.
        parts: The other sections that changed.
    """

    settings: Settings
    restart: tuple[str, ...] = ()
    added: tuple[RepositorySettings, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[RepositorySettings, ...] = ()
    parts: frozenset[str] = frozenset()

    @property
    def is_any(self) -> bool:
        """Tell whether anything is to be applied."""
        return bool(self.added or self.removed or self.changed or self.parts)


def restart_keys() -> Iterator[tuple[SectionPath, NeedsRestart]]:
    """Yield every key whose change needs a restart."""
    for place, section in SECTIONS.items():
        for key, name in keys_of(section).items():
            for one in section.model_fields[name].metadata:
                if isinstance(one, NeedsRestart):
                    yield (*place, key), one


def compare(running: Settings, new: Settings, here: Mapping[str, RepositorySettings]) -> Difference:
    """Tell what is to be done for `new` to apply.

    Args:
        running: What applies now.
        new: What stands in the file.
        here: The settings of all repositories that are here, those below `upstreams` too.
    """
    settings, restart = _kept(running, new)
    added: dict[str, RepositorySettings] = {}
    removed: list[str] = []
    changed: list[RepositorySettings] = []
    for name, was in here.items():
        now = settings.find(name)
        if now is None:
            removed.append(name)
        elif now.upstream != was.upstream:
            removed.append(name)
            if now.place is None:
                added[name] = now
        elif now != was:
            changed.append(now)
    added |= {name: one for name, one in settings.repositories.items() if name not in here}
    return Difference(
        settings,
        restart=tuple(restart),
        added=tuple(added.values()),
        removed=tuple(removed),
        changed=tuple(changed),
        parts=frozenset(
            part for part in _PARTS if getattr(running, part) != getattr(settings, part)
        ),
    )


def why_not(running: Settings, new: Settings) -> str | None:
    """Tell why `new` can't be applied without a restart, not even in part; `None` where it can.

    Where `access` is left out, it stands for what suits `server.listen`: everybody may read what
    only this machine reaches. The address stays until the restart, so that has to wait, too.
    """
    was, now = running.server.listen, new.server.listen
    if is_own_machine(was.host) or not is_own_machine(now.host):
        return None
    each = (*new.repositories.values(), *new.upstreams)
    if not any(AccessKind.ANONYMOUS in one.access for one in each):
        return None
    return (
        f"server.listen: from {was} to {now} needs a restart, and until then everybody who reaches"
        f" {was} could read what is `anonymous`, which `access` is on loopback where it is left"
        " out; restart, or leave `listen` as it is for now"
    )


def _kept(running: Settings, new: Settings) -> tuple[Settings, list[str]]:
    """Return the new settings with what can't be changed as it is, and the names of that."""
    restart = [
        ".".join(path) for path, what in restart_keys() if _differs(running, new, path, what)
    ]
    server = {
        key.removeprefix("server."): getattr(running.server, key.removeprefix("server."))
        for key in restart
        if key.startswith("server.") and key.count(".") == 1
    }
    limits = {
        name: getattr(running.limits, name)
        for key, name in keys_of(SECTIONS["limits",]).items()
        if f"limits.{key}" in restart
    }
    whole = {key: getattr(running, key) for key in restart if "." not in key}
    if "server.unix_socket" in restart:
        whole["unix_socket"] = running.unix_socket
    if any(key.startswith("server.tls") for key in restart):
        whole["tls"] = running.tls
        server["tls"] = running.server.tls
    kept = replace(
        new,
        **whole,
        server=new.server.model_copy(update=server),
        limits=new.limits.model_copy(update=limits),
    )
    return kept, restart


def _differs(running: Settings, new: Settings, path: SectionPath, what: NeedsRestart) -> bool:
    was, now = _value(running, path), _value(new, path)
    return (was is None) != (now is None) if what.only_presence else was != now


def _value(settings: Settings, path: SectionPath) -> object:
    resolved = _RESOLVED.get(path)
    if resolved is not None:
        return resolved(settings)
    name = keys_of(SECTIONS[path[:-1]])[path[-1]]
    return getattr(_PLACES[path[:-1]](settings), name, None)
