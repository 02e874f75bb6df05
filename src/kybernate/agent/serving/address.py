"""Where the activator's workers listen, with which certificate, and by which names they are asked: found out before any of them is
started or ended, so that an address that can't be had is a line of an error, and not an activator that is gone.

Limits: somebody else may take the address between the look and the worker's own attempt; the worker says so in its log then.
"""

from __future__ import annotations

import hashlib
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from kybernate.model.addresses import on_loopback, resolved
from kybernate.model.errors import BadInput
from kybernate.settings import ActivatorSettings, Settings


@dataclass(frozen=True, slots=True)
class Address:
    """What all workers of one generation are told. Another one takes another generation."""

    listen: str
    workers: int
    certificate: str | None = None
    key: str | None = None
    traces: str | None = None
    pair: str = ""
    """Digest of certificate and key, so that renewed files are another address, too."""

    @classmethod
    def of(cls, settings: ActivatorSettings) -> Address:
        """Reads the certificate. Blocks.

        Raises:
            BadInput: certificate or key can't be used.
        """
        tls = settings.tls
        certificate, key = tls.certificate, tls.key
        return cls(
            listen=settings.listen,
            workers=settings.workers,
            certificate=None if certificate is None else str(certificate),
            key=None if key is None else str(key),
            traces=settings.traces,
            pair="" if certificate is None or key is None else _pair(certificate, key),
        )


def refuse_taken(address: Address) -> None:
    """Bind where the workers will, and let go again; sockets of workers that are there already don't hinder it.

    Raises:
        BadInput: somebody else has it, or this machine doesn't.
    """
    try:
        family, kind, protocol, _, where = resolved(address.listen)
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            probe.bind(where)
    except OSError as e:
        raise BadInput(
            f"can't listen on {address.listen}: {e.strerror or e}",
            hint="choose another `activator.listen`, or end who has it",
        ) from e


def answered_hosts(settings: Settings) -> tuple[str, ...] | None:
    """Names by which requests may come, besides `localhost` and addresses. None: any. May ask the resolver.

    A foreign page gets no further where a key is needed or a certificate must fit its name. Where other machines come, nobody
    knows by which names they do.
    """
    activator = settings.activator
    if activator.hosts == "any":
        return None
    open_to_pages = activator.keys_file is None and activator.tls.certificate is None
    if activator.hosts is None and not (open_to_pages and on_loopback(activator.listen)):
        return None
    host = activator.listen.rpartition(":")[0]
    # Not getfqdn, which may wait long for a resolver that isn't there, for a name that nobody uses on the loopback.
    own = (socket.gethostname(), host, *(activator.hosts or ()))
    names = (*own, *(name for model in settings.models.values() for name in model.hosts))
    return tuple(dict.fromkeys(name.lower() for name in names))


def _pair(certificate: Path, key: Path) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    digest = hashlib.sha256()
    for path in (certificate, key):
        try:
            digest.update(path.read_bytes())
        except OSError as e:
            raise BadInput(f"can't read {path}: {e.strerror}", hint="see `activator.tls`") from e
    try:
        context.load_cert_chain(certificate, key, password="")  # none: nobody is to be asked for one
    except (OSError, ValueError) as e:
        raise BadInput(
            f"can't use the certificate {certificate} with the key {key}: {_reason(e)}",
            hint="both are PEM files, the key without a password and made for that certificate",
        ) from e
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error).replace("_", " ").lower()
