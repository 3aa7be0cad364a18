"""Webhooks of the forges: checked, answered at once, and turned into refreshes.

A delivery is verified with the secrets of the repositories it names; one that names none of ours,
with all of them, so that nobody finds out without a secret which repositories there are. What is
genuine is answered 2xx even when it is of no use, and where the forge would resent a refusal, even
when it makes no sense.
"""

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog
from aiohttp import web

from mirror.errors import ProtocolError, Unauthenticated, UnknownRepository
from mirror.metrics import Metrics
from mirror.refresh.announcements import Announcement, Announcer
from mirror.refresh.registry import Hosted, Registry
from mirror.upstream.credentials import Secret
from mirror.upstream.forges import (
    RECEIVERS,
    RESENTFUL,
    Ignored,
    Ping,
    Push,
    Receiver,
    WebhookEvent,
)
from mirror.upstream.webhook_secrets import WebhookSecrets
from mirror.web.protocol import OPERATION, Operation, read_body

BODY_BYTES_MAX: Final = 25 << 20
"""What GitHub and GitLab cap their payloads at."""

INLINE_BYTES_MAX: Final = 256 * 1024
"""Hashing a longer body takes a millisecond and more: not on the event loop. Nor is it parsed
before it is known to be genuine: JSON of a few megabytes may become gigabytes of objects."""

logger = structlog.stdlib.get_logger()


@dataclass(slots=True)
class _Owners:
    """For whom a secret speaks.

    Attributes:
        hosted: The repositories.
        is_old: It stands on the first line of nobody's file: it is being rotated out.
    """

    hosted: list[Hosted] = field(default_factory=list)
    is_old: bool = True


class Webhooks:
    """The handler of `/webhooks/{forge}`."""

    def __init__(self, registry: Registry, metrics: Metrics, announcer: Announcer) -> None:
        self._registry = registry
        self._metrics = metrics
        self._announcer = announcer

    def keep_to(self, registry: Registry) -> None:
        """Go on with what there was, for deliveries that came before a change."""
        self._registry = registry

    async def receive(self, request: web.Request) -> web.Response:
        """POST /webhooks/{forge}."""
        request[OPERATION] = Operation.WEBHOOK
        forge = request.match_info["forge"]
        receiver = RECEIVERS.get(forge)
        if receiver is None:
            raise UnknownRepository(f"no webhooks of {forge[:50]!r} here; {_known_forges()}")
        body = await read_body(
            request, bytes_max=BODY_BYTES_MAX, hint="no forge sends as much in one webhook"
        )
        try:
            event, hosted, is_old = await self._read(receiver, forge, request, body)
        except Unauthenticated as error:
            self._metrics.record_webhook(forge, "unauthenticated")
            logger.warning("webhook_refused", forge=forge, error=str(error))
            raise
        if isinstance(event, ProtocolError):
            return self._refuse(forge, event)
        outcome, status, names = await self._act(forge, event, hosted)
        self._metrics.record_webhook(forge, outcome)
        more: dict[str, object] = {"old_secret": True} if is_old else {}
        if isinstance(event, Ignored):
            more |= {"kind": event.kind, "reason": event.reason}
        logger.info(
            "webhook",
            forge=forge,
            outcome=outcome,
            delivery=event.delivery,
            refreshing=names,
            **more,
        )
        return web.json_response({"outcome": outcome, "repositories": names}, status=status)

    def _refuse(self, forge: str, error: ProtocolError) -> web.Response:
        """Answer a genuine delivery that makes no sense."""
        self._metrics.record_webhook(forge, "malformed")
        if forge not in RESENTFUL:
            raise error
        logger.warning("webhook_malformed", forge=forge, error=str(error))
        return web.json_response({"outcome": "malformed", "error": str(error)}, status=202)

    async def _read(
        self, receiver: Receiver, forge: str, request: web.Request, body: bytes
    ) -> tuple[WebhookEvent | ProtocolError, list[Hosted], bool]:
        """Return what a genuine delivery says, or what is wrong with it, and whom it is about.

        The third is whether an old secret proved it.

        Raises:
            Unauthenticated: It is not genuine.
        """
        if len(body) > INLINE_BYTES_MAX:
            await self._verified(receiver, forge, request, body, list(self._registry))
        event: WebhookEvent | ProtocolError
        try:
            event = receiver.parse(request.headers, body)
        except ProtocolError as error:
            event = error
        named = self._named(event)
        owners = await self._verified(receiver, forge, request, body, named)
        return event, [one for one in named if one in owners.hosted], owners.is_old

    def _named(self, event: WebhookEvent | ProtocolError) -> list[Hosted]:
        if isinstance(event, Ignored | ProtocolError):
            return []
        return self._registry.find_by_urls(event.repository_urls)

    async def _verified(
        self,
        receiver: Receiver,
        forge: str,
        request: web.Request,
        body: bytes,
        named: Sequence[Hosted],
    ) -> _Owners:
        """Return for whom the delivery's secret speaks.

        Raises:
            Unauthenticated: It speaks for none.
        """
        owners = _secrets(named)
        if not owners:
            owners = _secrets(one for one in self._registry if one.settings.forge == forge)
            # Of a repository below `upstreams` that nobody has asked for yet.
            for secret in self._place_secrets(forge):
                owners.setdefault(secret.reveal(), _Owners(is_old=False))
        if not owners:
            raise Unauthenticated(
                f"no repository here has a webhook secret for {forge}; set webhook_secret_file"
            )
        secrets = list(owners)
        now = time.time()
        if len(body) * len(secrets) <= INLINE_BYTES_MAX:
            position = receiver.verify(request.headers, body, secrets=secrets, now=now)
        else:
            position = await asyncio.to_thread(
                receiver.verify, request.headers, body, secrets=secrets, now=now
            )
        return owners[secrets[position]]

    def _place_secrets(self, forge: str) -> Iterator[Secret]:
        files = {
            one.webhook_secret_file: WebhookSecrets(one.webhook_secret_file)
            for one in self._registry.upstreams
            if one.forge == forge and one.webhook_secret_file is not None
        }
        for file, secrets in files.items():
            yield from _read_secrets(secrets, str(file))

    async def _act(
        self, forge: str, event: WebhookEvent, hosted: Sequence[Hosted]
    ) -> tuple[str, int, list[str]]:
        """Do what the event calls for; returns the outcome, the status, and whom it concerns."""
        names = [one.mirror.name for one in hosted]
        match event:
            case Ping():
                return "ping", 200, names
            case Ignored():
                return "ignored", 202, []
            case Push() if not hosted:
                return "unknown_repository", 202, []
            case Push():
                is_news = await self._announcer.announce(
                    Announcement(forge, event.delivery, tuple(names), event.changes)
                )
                return "accepted" if is_news else "repeated", 202, names


def _secrets(hosted: Iterable[Hosted]) -> dict[bytes, _Owners]:
    owners: dict[bytes, _Owners] = {}
    read: dict[Path, tuple[Secret, ...]] = {}  # hundreds of repositories may share one file
    for one in hosted:
        if one.webhook_secrets is None:
            continue
        path = one.webhook_secrets.path
        if path not in read:
            read[path] = _read_secrets(one.webhook_secrets, one.mirror.name)
        for number, secret in enumerate(read[path]):
            owner = owners.setdefault(secret.reveal(), _Owners())
            owner.hosted.append(one)
            owner.is_old = owner.is_old and number > 0
    return owners


def _read_secrets(secrets: WebhookSecrets, repository: str) -> tuple[Secret, ...]:
    try:
        return secrets.read()
    except (OSError, ValueError) as error:
        logger.warning("webhook_secret_unusable", repository=repository, error=str(error))
        return ()


def _known_forges() -> str:
    return "known are " + ", ".join(f"/webhooks/{name}" for name in RECEIVERS)
