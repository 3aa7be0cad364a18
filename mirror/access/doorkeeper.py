"""May this client read that repository? The one place that decides it.

Without a name that is known, every repository that is not open to everybody answers 401, whether
there is one or not; with a name, those that it may not see are not there (404). So nobody learns
which repositories there are but from those that they may read.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from mirror.access.attempts import Attempts
from mirror.access.forge import ForgeAccess
from mirror.access.oidc import Oidc
from mirror.access.presented import Presented, read_authorization
from mirror.access.reader import ANONYMOUS, Grant, Reader
from mirror.access.tokens import Tokens
from mirror.config import AccessKind, CertificateSettings, is_like
from mirror.errors import SignInWanted, TooManyAttempts, Unauthenticated, UnknownRepository
from mirror.refresh.registry import unknown

PROOFS_MAX: Final = 10_000
"""Headers known by heart; those used least recently are checked anew."""


@dataclass(frozen=True, slots=True)
class Client:
    """What is known of a client before it is asked for a name.

    Attributes:
        address: Where it comes from, for the count of failed attempts.
        authorization: Its Authorization header.
        certificate: The subject of the client certificate that TLS has checked, as RFC 4514 says.
    """

    address: str
    authorization: str | None = field(default=None, repr=False)
    certificate: str | None = None


@dataclass(frozen=True, slots=True)
class _Proof:
    """A header that has proven a reader, and how long that holds (seconds since the epoch)."""

    reader: Reader
    until: float | None
    generation: int


class Doorkeeper:
    """Decides about every request for a repository."""

    def __init__(
        self,
        access: Iterable[frozenset[AccessKind]],
        tokens: Tokens,
        oidc: Oidc,
        forge: ForgeAccess,
        certificates: Iterable[CertificateSettings],
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Be ready to decide.

        Args:
            access: Of all repositories: it tells what to answer where there is none.
            tokens: Our own.
            oidc: Readers of issuers.
            forge: Asks forges.
            certificates: Readers by certificate.
            clock: Seconds that never go back.
            wall_clock: Seconds since the epoch.
        """
        self._kinds = frozenset().union(*access)
        self._tokens = tokens
        self._oidc = oidc
        self._forge = forge
        self._certificates = tuple(certificates)
        self._clock = clock
        self._wall_clock = wall_clock
        self._attempts = Attempts()
        self._proofs: OrderedDict[bytes, _Proof] = OrderedDict()

    def take_over(self, before: "Doorkeeper", *, is_same: Callable[[str], bool]) -> None:
        """Go on with what another one has learned, by another configuration.

        Who was let in by a forge or an issuer that is not reached now still is; who has guessed too
        often still waits. What a token of ours proves is looked up anew.

        Args:
            before: The other one.
            is_same: Whether the repository of a name has the upstream that it had.
        """
        self._attempts = before._attempts  # noqa: SLF001 - of the same class
        self._oidc.take_over(before._oidc)  # noqa: SLF001
        self._forge.take_over(before._forge, is_same=is_same)  # noqa: SLF001

    @property
    def is_open(self) -> bool:
        """Whether everybody may read everything, so that there is nothing to hide."""
        return self._kinds <= {AccessKind.ANONYMOUS}

    async def admit(
        self, client: Client, name: str, *, access: frozenset[AccessKind], upstream: str
    ) -> Grant:
        """Let a client read a repository.

        Args:
            client: Who.
            name: What.
            access: Of the repository.
            upstream: Its URL.

        Raises:
            SignInWanted: It has to show who it is, or what it showed is not good.
            TooManyAttempts: It has shown too much that was not good.
            UnknownRepository: It may not see this one.
            UpstreamUnavailable: What it showed can't be checked.
        """
        if AccessKind.ANONYMOUS in access:
            return ANONYMOUS
        if AccessKind.READERS in access:
            by_certificate = self._by_certificate(client.certificate)
            if by_certificate is not None and client.authorization is None:
                return Grant(_seeing(by_certificate, name).name)
        presented = self._presented(client)
        if AccessKind.READERS in access and (proof := self._known(presented)) is not None:
            return self._granted(proof, name)
        if AccessKind.UPSTREAM in access and self._forge.known(presented.digest, name):
            return self._by_forge(presented, name)
        self._check_attempts(client)
        refusal: Unauthenticated | None = None
        if AccessKind.READERS in access:
            try:
                proven = await self._prove(presented)
            except Unauthenticated as error:
                refusal, proven = error, None
            if proven is not None:
                return self._granted(proven, name)
        if AccessKind.UPSTREAM in access and client.authorization is not None:
            header, digest = client.authorization, presented.digest
            if await self._forge.allows(header, digest, name, upstream):
                return self._by_forge(presented, name)
        raise self._failed(client, refusal)

    async def turn_away(self, client: Client, unknown: UnknownRepository) -> None:
        """Answer who asks for what is not here, as if it were and they might not see it.

        Raises:
            SignInWanted: They have not shown who they are.
            TooManyAttempts: They have shown too much that was not good.
            UnknownRepository: `unknown`.
        """
        if self.is_open:
            raise unknown
        if self._by_certificate(client.certificate) is not None and client.authorization is None:
            raise unknown
        presented = self._presented(client)
        if self._known(presented) is not None:
            raise unknown
        self._check_attempts(client)
        refusal: Unauthenticated | None = None
        try:
            if await self._prove(presented) is not None:
                raise unknown
        except Unauthenticated as error:
            refusal = error
        raise self._failed(client, refusal)

    # --- names ---------------------------------------------------------------------------------

    def _presented(self, client: Client) -> Presented:
        if client.authorization is None:
            raise SignInWanted("who are you? Send a token as password, or as Bearer token")
        try:
            return read_authorization(client.authorization)
        except Unauthenticated as error:
            raise SignInWanted(str(error)) from error

    def _by_certificate(self, subject: str | None) -> Reader | None:
        if subject is None:
            return None
        for one in self._certificates:
            if is_like(subject, one.subject):
                return Reader(f"certificate {one.name}", one.repositories)
        return None

    def _known(self, presented: Presented) -> _Proof | None:
        """Return a proof that was given before, if it still holds."""
        proof = self._proofs.get(presented.digest)
        if proof is None:
            return None
        if not self._holds(proof):
            del self._proofs[presented.digest]
            return None
        self._proofs.move_to_end(presented.digest)
        return proof

    def _holds(self, proof: _Proof) -> bool:
        if proof.generation != self._tokens.look():
            return False
        return proof.until is None or self._wall_clock() < proof.until

    async def _prove(self, presented: Presented) -> _Proof | None:
        """Look what the shown secret proves, and know it by heart.

        Raises:
            Unauthenticated: It is a token of an issuer, and not good.
            UpstreamUnavailable: It can't be checked.
        """
        found: tuple[Reader, float | None] | None = self._tokens.find(presented.secret)
        if found is None:
            found = await self._oidc.find(presented.secret)
        if found is None:
            return None
        proof = _Proof(*found, self._tokens.generation)
        self._proofs[presented.digest] = proof
        if len(self._proofs) > PROOFS_MAX:
            self._proofs.popitem(last=False)
        return proof

    # --- the end -------------------------------------------------------------------------------

    def _granted(self, proof: _Proof, name: str) -> Grant:
        return Grant(_seeing(proof.reader, name).name, lambda: self._holds(proof))

    def _by_forge(self, presented: Presented, name: str) -> Grant:
        digest = presented.digest
        return Grant("upstream", lambda: self._forge.known(digest, name) is True)

    def _check_attempts(self, client: Client) -> None:
        wait = self._attempts.wait_seconds(client.address, self._clock())
        if wait > 0:
            raise TooManyAttempts(
                f"too many failed attempts from {client.address}; wait {wait:.0f} seconds",
                retry_after_seconds=wait,
            )

    def _failed(self, client: Client, refusal: Unauthenticated | None) -> SignInWanted:
        self._attempts.failed(client.address, self._clock())
        return SignInWanted(str(refusal) if refusal else "these credentials are not good here")


def _seeing(reader: Reader, name: str) -> Reader:
    """Return the reader if it may see the repository.

    Raises:
        UnknownRepository: It may not: then there is none.
    """
    if not reader.may_read(name):
        raise unknown(name)
    return reader
