"""API and dashboard over TCP: who is let in, and what browsers are told.

Every request carries the token, or comes over a connection with a client certificate of the configured authority; whoever is let
in is the agent's own user. The dashboard's files alone are for everybody: there is nothing in them. There are no cookies, so a
foreign page has nothing to abuse but a client certificate, hence requests that a browser marks as another site's are refused. A
request must name a host that is known to be ours, so that a foreign page can't get here by a name of its own.

How many connections there may be is connection_limits.py's.

Limits: certificate and key are read once.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler

from kybernate.agent.api import http
from kybernate.agent.api.tokens import TokenFile
from kybernate.model.addresses import host_and_port
from kybernate.model.caller import NotPermitted, own_user
from kybernate.model.errors import BadInput, KybernateError
from kybernate.model.layout import StateDirectory
from kybernate.settings import ApiSettings

_BACKLOG = 128
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_OWN_SITE = frozenset({"same-origin", "none"})
"""Of Sec-Fetch-Site: our own page, and what a person has typed. Programs that are no browsers don't send it."""


class NoToken(KybernateError):
    """The request shows neither token nor certificate; nothing was done."""

    exit_status = 2
    http_status = 401
    code = "no_token"


class Misdirected(BadInput):
    """The request is for a host that isn't known to be ours."""

    http_status = 421
    code = "misdirected"


@dataclass(frozen=True, slots=True)
class Page:
    """A file of the dashboard."""

    body: bytes
    media: str

    @property
    def tag(self) -> str:
        return hashlib.sha256(self.body).hexdigest()[:32]


Pages = Mapping[str, Page]
"""By path, `/` included."""


@dataclass(frozen=True, slots=True)
class TcpEndpoint:
    """A bound socket and what is needed to answer there."""

    listener: socket.socket
    url: str
    token: TokenFile
    tls: ssl.SSLContext | None
    names: frozenset[str]
    """Hosts that are ours, in lower case; IP addresses besides."""


async def open_endpoint(settings: ApiSettings, state: StateDirectory) -> TcpEndpoint | None:
    """None where the settings name no address.

    Raises:
        BadInput: it can't be listened there, or should not be.
    """
    if settings.listen is None:
        return None
    host, port = host_and_port(settings.listen)
    address, family = await _resolve(host, port)
    tls = _tls(settings)
    if tls is None and not address.is_loopback and not settings.plaintext:
        raise BadInput(
            f"agent.api.listen: {settings.listen} can be reached from other machines, and there is no TLS",
            hint="listen on 127.0.0.1 and forward the port by ssh, give agent.api.tls, or say agent.api.plaintext: true",
        )
    token = TokenFile(settings.token_file or state.token)
    token.make()
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((str(address), port))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as e:
        listener.close()
        raise BadInput(f"can't listen on {settings.listen}: {e.strerror}", hint="see agent.api.listen") from e
    shown = _shown(host, address)
    url = f"{'http' if tls is None else 'https'}://{shown}:{listener.getsockname()[1]}/"
    names = frozenset(
        name.lower() for name in ("localhost", socket.gethostname(), socket.getfqdn(), host, *settings.hosts)
    )
    return TcpEndpoint(listener=listener, url=url, token=token, tls=tls, names=names)


async def _resolve(host: str, port: int) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as e:
        raise BadInput(f"agent.api.listen: no such host: {host!r}", hint="give an address of this machine") from e
    family, _, _, _, where = found[0]
    return ipaddress.ip_address(where[0]), family


def _shown(host: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    if address.is_unspecified:
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def _tls(settings: ApiSettings) -> ssl.SSLContext | None:
    tls = settings.tls
    if tls.certificate is None or tls.key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    read: Path = tls.certificate
    try:
        # A key with a passphrase would be asked for on a terminal that isn't there.
        context.load_cert_chain(tls.certificate, tls.key, password="")
        if tls.client_ca is not None:
            read = tls.client_ca
            context.load_verify_locations(tls.client_ca)
            context.verify_mode = ssl.CERT_OPTIONAL
    except (OSError, ssl.SSLError) as e:
        reason = getattr(e, "reason", None) or e.strerror or str(e)
        raise BadInput(f"agent.api.tls: can't use {read}: {reason}", hint="give PEM files that belong together") from e
    return context


class Guard:
    """The middleware: answers for the dashboard's files, lets in who may, names the caller."""

    def __init__(
        self, endpoint: TcpEndpoint, pages: Pages, *, on_admitted: Callable[[asyncio.BaseTransport | None], None]
    ) -> None:
        """`on_admitted`: told of each connection on which somebody was let in."""
        self._endpoint = endpoint
        self._pages = pages
        self._on_admitted = on_admitted

    @web.middleware
    async def check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self._refuse_foreign_host(request)
        page = self._pages.get(request.path)
        if page is not None and request.method in ("GET", "HEAD"):
            return _answer(request, page)
        _refuse_foreign_page(request)
        self._refuse_unknown(request)
        self._on_admitted(request.transport)
        request[http.CALLER] = own_user()
        return await handler(request)

    def _refuse_foreign_host(self, request: web.Request) -> None:
        given = request.headers.getall("Host", [])
        host = _host(given[0]) if len(given) == 1 else None
        if host is None or not (host in self._endpoint.names or _is_address(host)):
            raise Misdirected(
                f"this is not {(given or ['the host that was meant'])[0][:100]!r}",
                hint="use localhost or an IP address, or name the host in agent.api.hosts",
            )

    def _refuse_unknown(self, request: web.Request) -> None:
        transport = request.transport
        if self._endpoint.tls is not None and transport is not None and transport.get_extra_info("peercert"):
            return
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not self._endpoint.token.matches(token.strip()):
            raise NoToken(
                "the token is missing or wrong",
                hint="`kybernate token` prints it; send it as `Authorization: Bearer TOKEN`",
            )


def _refuse_foreign_page(request: web.Request) -> None:
    site = request.headers.get("Sec-Fetch-Site", "none")
    origin = request.headers.get("Origin")
    if site not in _OWN_SITE or (origin is not None and _netloc(origin) != request.headers["Host"].lower()):
        raise NotPermitted("a page of another site may not use this API", hint="open the dashboard itself")


def _netloc(origin: str) -> str | None:
    """None where it makes no sense."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


async def dress(request: web.Request, response: web.StreamResponse) -> None:
    """Signal before each answer: what browsers must know."""
    response.headers.update(_HEADERS)
    response.headers.setdefault("Cache-Control", "no-store")
    if response.status == NoToken.http_status:
        response.headers["WWW-Authenticate"] = 'Bearer realm="kybernate"'


def _answer(request: web.Request, page: Page) -> web.Response:
    known = {tag.value for tag in request.if_none_match or ()}
    fresh = page.tag not in known
    response = web.Response(status=200 if fresh else 304, body=page.body if fresh else None)
    if fresh:
        response.headers["Content-Type"] = page.media
    response.etag = page.tag
    response.headers["Cache-Control"] = "no-cache"  # asked for each time, sent only when it has changed
    return response


def _host(text: str) -> str | None:
    """Of a Host header, without the port, in lower case; None where it makes no sense."""
    try:
        return urlsplit(f"//{text}").hostname
    except ValueError:
        return None


def _is_address(host: str) -> bool:
    """Foreign pages come by names; an address is nobody's but ours."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
