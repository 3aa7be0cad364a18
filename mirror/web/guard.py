"""Between a request and the doorkeeper: whose request is it, and what is it let in to?

Each handler that serves something of a repository finds that repository here, and nowhere else.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import structlog
from aiohttp import web
from cryptography import x509

from mirror.access.doorkeeper import Client, Doorkeeper
from mirror.access.reader import ANONYMOUS, Grant
from mirror.config import (
    AccessKind,
    Network,
    PushPolicy,
    RepositorySettings,
    is_own_machine,
)
from mirror.errors import (
    MirrorError,
    NotAllowedHere,
    SignInWanted,
    TooManyAttempts,
    UnknownRepository,
)
from mirror.metrics import Metrics
from mirror.refresh.registry import Hosted, Registry
from mirror.web.finding import Finder, Opening
from mirror.web.forwarded import Proxies, contains
from mirror.web.repeating import Repeatable

CHALLENGES: Final = ('Basic realm="git-mirror", charset="UTF-8"', 'Bearer realm="git-mirror"')
"""What a 401 asks for (RFC 7617, RFC 6750). git and libcurl take the first."""

_REASONS: Final[dict[type[MirrorError], str]] = {
    SignInWanted: "refused",
    TooManyAttempts: "too_many",
    UnknownRepository: "unseen",
}

GRANT: Final = web.RequestKey("grant", Grant)
"""By what permission a request is answered; not there for what needs none."""


class Guard:
    """Finds repositories for those who may read them."""

    def __init__(
        self,
        registry: Registry,
        doorkeeper: Doorkeeper,
        proxies: Proxies,
        metrics: Metrics,
        *,
        monitoring_from: Sequence[Network],
    ) -> None:
        self.proxies = proxies
        self._metrics = metrics
        self._registry = registry
        self._finder = Finder(registry)
        self.doorkeeper = doorkeeper
        self._monitoring_from = monitoring_from

    def keep_to(self, registry: Registry) -> None:
        """Go on with what there was, for requests that came before a change."""
        self._registry = registry
        self._finder = Finder(registry)

    async def find(self, request: web.Request) -> Hosted:
        """Return the repository that a request is about, if its client may read it.

        One below `upstreams` is mirrored first, if need be.

        Raises:
            ClientError: It may not, see `Doorkeeper.admit`; or it can't be mirrored.
            UpstreamUnavailable: That can't be found out.
        """
        return await self.bring(request, await self.admit(request))

    def look(self, request: web.Request, settings: RepositorySettings) -> Hosted | Opening:
        """Return a repository whose settings `admit` gave, or what there is to wait for."""
        return self._finder.look(request, settings, self.address(request))

    async def bring(self, request: web.Request, settings: RepositorySettings) -> Hosted:
        """Return a repository whose settings `admit` gave, after a wait if need be.

        Raises:
            ClientError: It can't be mirrored, or not so soon.
        """
        return await self._finder.find(request, settings, self.address(request))

    async def admit(self, request: web.Request) -> RepositorySettings:
        """Return the settings of the repository that a request is about, if its client may read it.

        Nothing is mirrored for that, nor does anything tell whether it is.

        Raises:
            ClientError: It may not; see `Doorkeeper.admit`.
            UpstreamUnavailable: That can't be found out.
        """
        try:
            settings, grant = await self._admit(request)
        except MirrorError as error:
            if reason := _REASONS.get(type(error)):
                is_named = "Authorization" in request.headers
                unnamed = reason == "refused" and not is_named
                self._metrics.record_refused_reader("unnamed" if unnamed else reason)
            raise
        request[GRANT] = grant
        if grant is not ANONYMOUS:
            structlog.contextvars.bind_contextvars(reader=grant.reader)
        return settings

    async def _admit(self, request: web.Request) -> tuple[RepositorySettings, Grant]:
        try:
            settings = self._registry.resolve(request.match_info["repository"])
        except UnknownRepository as unknown:
            await self.doorkeeper.turn_away(self._client(request), unknown)
            raise
        if AccessKind.ANONYMOUS in settings.access:
            return settings, ANONYMOUS
        return settings, await self.doorkeeper.admit(
            self._client(request),
            settings.name,
            access=settings.access,
            upstream=settings.upstream,
        )

    async def find_for_push(self, request: web.Request) -> Hosted:
        """Return the repository that a push is about.

        Where pushes are passed on, the upstream decides about it, with credentials that say nothing
        here; a refusal names the upstream, which only readers may know. A push mirrors nothing.

        Raises:
            ClientError: The client may not read it, and pushes are refused; or it is not here.
        """
        try:
            settings = self._registry.resolve(request.match_info["repository"])
        except UnknownRepository:
            settings = await self.admit(request)
        is_here = self._registry.get(settings.name) is not None
        if settings.push is not PushPolicy.PROXY or not is_here:
            settings = await self.admit(request)
        return self._finder.find_for_push(request, settings)

    def sees_all(self, request: web.Request) -> bool:
        """Tell whether a client may know which repositories there are."""
        if self.doorkeeper.is_open and not self._monitoring_from:
            return True
        address = self.address(request)
        return (
            address == "local"
            or is_own_machine(address)
            or contains(self._monitoring_from, address)
        )

    def check_monitoring(self, request: web.Request) -> None:
        """Let only those look who may know which repositories there are.

        Raises:
            NotAllowedHere: Others.
        """
        if not self.sees_all(request):
            raise NotAllowedHere(
                f"not for {self.address(request)}: name its network in `server.monitoring_from`"
            )

    def address(self, request: web.Request) -> str:
        """Return the client's address, behind proxies that are believed."""
        return client_address(self.proxies, request)

    def _client(self, request: web.Request) -> Client:
        return Client(
            self.address(request),
            request.headers.get("Authorization"),
            subject_of(certificate_of(request.transport)),
        )


def granted(offered: Repeatable, grant: Grant) -> Repeatable:
    """Let an answer be given again only as long as the permission holds by which it was given."""
    is_current, is_valid = grant.is_current, offered.is_valid
    if is_current is None:
        return offered
    return replace(offered, is_valid=lambda: is_current() and is_valid())


def client_address(proxies: Proxies, request: web.Request) -> str:
    """Return the client's address, behind proxies that are believed; `local` for a Unix socket."""
    return proxies.client(request.remote or None, request.headers.getall("X-Forwarded-For", ()))


def certificate_of(transport: object) -> bytes | None:
    """Return the client certificate that TLS has checked, in DER."""
    get = getattr(transport, "get_extra_info", None)
    connection = get("ssl_object") if get is not None else None
    found: bytes | None = connection.getpeercert(binary_form=True) if connection else None
    return found


@functools.lru_cache(maxsize=1024)
def subject_of(certificate: bytes | None) -> str | None:
    """Return the subject of a certificate as RFC 4514 writes it."""
    if certificate is None:
        return None
    return x509.load_der_x509_certificate(certificate).subject.rfc4514_string()
