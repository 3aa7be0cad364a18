"""TLS for readers: the certificates, and their renewal while the service runs.

Each handshake gets the context of the moment, so that a new certificate, or another authority for
client certificates, counts from the next connection on. A pair that can't be loaded changes
nothing: the one before goes on, and the log says why.
"""

import asyncio
import ssl
import time
from pathlib import Path
from typing import Final

import structlog
from cryptography import x509

from mirror.config import TlsSettings
from mirror.errors import LocalError
from mirror.metrics import Metrics
from mirror.upstream.credentials import Stamp, stamp_of

LOOK_SECONDS: Final = 5.0
"""Between two looks at the files: a stat of each."""

logger = structlog.stdlib.get_logger()

Stamps = tuple[Stamp | None, ...]


class Tls:
    """What a listener needs to speak TLS.

    Attributes:
        context: For the listener; stays the same.
    """

    def __init__(self, settings: TlsSettings, metrics: Metrics) -> None:
        """Load the certificates.

        Raises:
            LocalError: They can't be loaded.
        """
        self._settings = settings
        self._metrics = metrics
        self._stamps = _look(settings)
        self._current = load(settings)
        self.context = load(settings)
        # Called in each handshake, with a server name or without.
        self.context.sni_callback = self._take_current
        self._tell()

    def change(self, settings: TlsSettings, loaded: ssl.SSLContext) -> None:
        """Show the certificates of another configuration, as `load` has loaded them."""
        self._settings = settings
        self._current = loaded
        self._stamps = ()  # looked at again soon, for they may have changed since

    async def run(self) -> None:
        """Look after the files until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self.look_again()

    async def look_again(self) -> bool:
        """Take new files if there are any; tells whether it did."""
        settings = self._settings
        stamps = await asyncio.to_thread(_look, settings)
        if stamps == self._stamps or settings is not self._settings:
            return False
        self._stamps = stamps
        try:
            loaded = await asyncio.to_thread(load, settings)
        except LocalError as error:
            # Perhaps one file of two is new: the other will be, soon.
            logger.error("certificate_not_loaded", error=str(error))  # noqa: TRY400
            return False
        if settings is not self._settings:
            return False  # another configuration has come meanwhile
        self._stamps, self._current = stamps, loaded
        self._tell()
        return True

    def _take_current(
        self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext
    ) -> None:
        del name, context
        connection.context = self._current

    def _tell(self) -> None:
        """Tell until when the certificates are good."""
        ends = []
        for certificate, _ in self._settings.pairs:
            loaded = x509.load_pem_x509_certificates(certificate.read_bytes())[0]
            ends.append(loaded.not_valid_after_utc.timestamp())
        self._metrics.set_certificate_end(min(ends))
        days = (min(ends) - time.time()) / 86400
        logger.info("certificate_loaded", days_left=round(days, 1))


def load(settings: TlsSettings) -> ssl.SSLContext:
    """Load the certificates; blocking.

    Raises:
        LocalError: They can't be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    for certificate, key in settings.pairs:
        try:
            context.load_cert_chain(certificate, key)
        except (OSError, ValueError) as error:
            raise LocalError(
                f"the certificate {certificate} and its key {key} can't be used: {_reason(error)}"
            ) from error
    authorities = settings.client_ca_file
    if authorities is not None:
        context.verify_mode = ssl.CERT_OPTIONAL
        try:
            context.load_verify_locations(authorities)
        except (OSError, ValueError) as error:
            raise LocalError(f"{authorities} can't be used: {_reason(error)}") from error
    return context


def _look(settings: TlsSettings) -> Stamps:
    files = [file for pair in settings.pairs for file in pair]
    if settings.client_ca_file is not None:
        files.append(settings.client_ca_file)
    return tuple(map(_stamp_of, files))


def _stamp_of(file: Path) -> Stamp | None:
    try:
        return stamp_of(file.stat())
    except OSError:
        return None


def _reason(error: OSError | ValueError) -> str:
    return str(getattr(error, "reason", None) or getattr(error, "strerror", None) or error)
