"""What is on the disk of a repository's mirror at the start: served, set aside, or left."""

import time

import structlog

from mirror.config import RepositorySettings
from mirror.errors import Damaged, LocalError
from mirror.places import DataDirectory
from mirror.refresh.mirror import Mirror
from mirror.refresh.update import Updater
from mirror.repository.bare import BareRepository
from mirror.repository.snapshot import RefSnapshot

logger = structlog.stdlib.get_logger()


def open_mirror(
    settings: RepositorySettings,
    places: DataDirectory,
    updater: Updater,
    *,
    sets_aside: bool = True,
) -> Mirror:
    """Open a repository's mirror if there is one on disk; blocking.

    One that can't be read, or that is of another upstream, is set aside and cloned anew, or left
    where it is, without `sets_aside`. One that is damaged in parts is served, as far as it is
    sound, until it is mended.
    """
    mirror = Mirror(settings, places.repository(settings.name))
    if not mirror.path.exists():
        return mirror
    repository = None
    try:
        repository = BareRepository.open(mirror.path, upstream_url=settings.upstream)
        _check_upstream(repository, settings)
        snapshot = updater.open(repository)
        for one in repository.found:
            logger.error(
                "damage_found",
                repository=settings.name,
                kind=one.kind.value,
                path=str(one.path),
                reason=one.reason,
                mended=True,
            )
        mirror.damage = look_for_damage(repository, snapshot)
        mirror.repository, mirror.snapshot = repository, snapshot
        mirror.scrubbed_at = repository.scrubbed_before
        mirror.vanishing = updater.recall_vanished(repository)
    except LocalError as error:
        if repository is not None:
            repository.close()
        if not sets_aside:
            logger.warning("mirror_left", repository=settings.name, reason=str(error))
            return mirror
        aside = places.set_aside / f"{settings.name.replace('/', '%2F')}.{time.time_ns()}.git"
        mirror.path.rename(aside)
        logger.warning(
            "mirror_set_aside", repository=settings.name, reason=str(error), path=str(aside)
        )
    return mirror


def look_for_damage(repository: BareRepository, snapshot: RefSnapshot) -> str | None:
    """Return what is wrong, as far as one look tells; what is right in full takes the scrub.

    Raises:
        Damaged: There is nothing left to serve.
    """
    contains = repository.source.contains
    missing = [ref for ref in snapshot.refs if not contains(ref.oid)]
    if missing:
        one = missing[0]
        reason = f"{one.name.decode('utf-8', 'replace')} names an object that is missing"
        if len(missing) == len(snapshot.refs):
            raise Damaged(f"{repository.path}: {reason}, and so does every other ref")
    elif repository.source.damaged:
        name, what = next(iter(repository.source.damaged.items()))
        reason = f"{name}: {what}"
    elif repository.not_mended is not None:  # tried again with the next refresh
        reason = repository.not_mended
    else:
        return None
    logger.error("mirror_damaged", path=str(repository.path), reason=reason)
    return reason


def _check_upstream(repository: BareRepository, settings: RepositorySettings) -> None:
    if repository.upstream_url != settings.upstream:
        raise LocalError(
            f"it mirrors {repository.upstream_url}; the configuration says {settings.upstream}"
        )


def close_mirror(mirror: Mirror) -> None:
    """Let go of a mirror's packs."""
    if mirror.repository is not None:
        mirror.repository.close()
