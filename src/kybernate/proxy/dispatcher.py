"""What becomes of a client's request, decided by its head: a page of ours, a refusal, or a request to a model.

The order is that of what may be told to whom: names first, then what browsers ask without a key, health, then keys, then all else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final, Protocol

from kybernate.model.messages import Endpoint, Key
from kybernate.proxy import answers
from kybernate.proxy.backend import Backend
from kybernate.proxy.client_side import ClientSide
from kybernate.proxy.detours import BadQuery, ByItsBody, NoModel, ToModel, WithSlash, detour, without_slashes
from kybernate.proxy.heads import RequestHead
from kybernate.proxy.keys import Keys, allows, token_of
from kybernate.proxy.origins import is_preflight, permission
from kybernate.proxy.refusals import Refusal, model_not_found, not_found
from kybernate.proxy.request import Request
from kybernate.proxy.routing import BY_BODY, OneModel, Page
from kybernate.proxy.services import WorkerServices

_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_FOREIGN: Final = Refusal(403, "foreign_page", "a page of another site may not ask here without a key")
_NEEDS_KEY: Final = Refusal(401, "invalid_api_key", "a valid API key is needed")


class Asker(ClientSide, Protocol):
    """The connection that a request comes from."""

    def begun(self, request: Request) -> None:
        """It is the one under way from now on."""


@dataclass(slots=True)
class _Asked:
    """One head, and what is known of it."""

    head: RequestHead
    rest: bytes
    """What came behind it."""
    request_id: bytes
    cors: bytes
    """Lines for the head of the answer: what they say to the browser it came from."""
    page_allowed: bool
    """It came from a page of another site that may ask."""
    key: Key | None = None


class Dispatcher:
    """Of one connection. Each method says how much of what came behind a head belonged to that request."""

    __slots__ = ("_client", "_key", "_key_seen", "_keys", "_services")

    def __init__(self, client: Asker, services: WorkerServices) -> None:
        self._client = client
        self._services = services
        self._keys: Keys | None = None
        self._key: Key | None = None
        self._key_seen = b""

    def take(self, head: RequestHead, rest: bytes) -> int:
        services = self._services
        directory = services.directory
        rules = directory.rules
        named = head.named
        request_id = named.get(b"x-request-id")
        if request_id is None or not _REQUEST_ID.fullmatch(request_id):
            request_id = services.next_request_id()
        if rules.origins is None:
            asked = _Asked(head, rest, request_id, b"", False)
        else:
            origin = named.get(b"origin", b"")
            asked = _Asked(head, rest, request_id, rules.origins.fields(origin), rules.origins.allow(origin))
        path = head.path
        host = named.get(b"host", b"")
        if not rules.hosts.any and not rules.hosts.allows(host):
            text = f"this is not {host[:100].decode('latin-1')!r}: name it in activator.hosts"
            return self._refuse(asked, Refusal(421, "misdirected", text))
        if asked.page_allowed and is_preflight(head.method, named):
            return self._preflight(asked)
        route = rules.routes.of(head.method, path, host)
        if route is None and (target := without_slashes(head.target)) != head.target:
            head.aim_at(target)
            path = head.path
            route = rules.routes.of(head.method, path, host)
        if route is Page.ALIVE or route is Page.READY:
            ready = directory.ready or route is Page.ALIVE
            return self._page(asked, 200 if ready else 503, {"status": "ok" if ready else "not ready"})
        needs_key = rules.keys.needed
        key = asked.key = self._key_of(named, rules.keys) if needs_key else None
        backend = directory.backends.get(route.model) if isinstance(route, Endpoint) else None
        if (
            backend is not None
            and path == backend.health
            and (not backend.queue.is_open or (key is None and needs_key))
        ):
            return self._health(asked, backend)
        if needs_key and key is None:
            return self._refuse(asked, _NEEDS_KEY)
        if route is Page.MODELS:
            endpoints = [endpoint for endpoint in rules.routes.endpoints if allows(key, endpoint)]
            return self._page(asked, 200, answers.models(endpoints, directory.statuses()))
        if route is BY_BODY and not needs_key and not asked.page_allowed and _is_of_a_foreign_page(named):
            return self._refuse(asked, _FOREIGN)
        if isinstance(route, OneModel):
            return self._one_model(asked, route.name)
        if route is None and rules.upstream:
            return self._detour(asked)
        if route is not BY_BODY and (backend is None or not allows(key, backend.endpoint)):
            return self._refuse(asked, not_found(head))
        return self._begin(asked, backend)

    # -- to a model ------------------------------------------------------------------------------------------------------

    def _detour(self, asked: _Asked) -> int:
        """Other paths of models' servers. None of them knows of browsers what OpenAI's do, so these are refused more strictly."""
        directory, head = self._services.directory, asked.head
        rules = directory.rules
        found = detour(rules.routes, head)
        if found is None:
            return self._refuse(asked, not_found(head))
        if not rules.keys.needed and not asked.page_allowed and _comes_from_elsewhere(head.named):
            return self._refuse(asked, _FOREIGN)
        match found:
            case ByItsBody():
                return self._begin(asked, None)
            case BadQuery(why):
                return self._refuse(asked, Refusal(400, "bad_request", why))
            case NoModel(name):
                return self._refuse(asked, model_not_found(name))
            case ToModel(endpoint, name, target) | WithSlash(endpoint, name, target):
                backend = directory.backends.get(endpoint.model)
                if backend is None or not allows(asked.key, endpoint):
                    return self._refuse(asked, model_not_found(name))
                if isinstance(found, WithSlash):
                    location = b"location: %b\r\n" % target
                    return self._page(asked, 308, {"location": target.decode()}, fields=location)
                head.aim_at(target)
                if head.path == backend.health and not backend.queue.is_open:
                    return self._health(asked, backend)
                return self._begin(asked, backend)

    def _begin(self, asked: _Asked, backend: Backend | None) -> int:
        head = asked.head
        request = Request(
            self._client,
            self._services,
            head,
            key=asked.key,
            request_id=asked.request_id,
            cors=asked.cors,
            page_allowed=asked.page_allowed,
        )
        self._client.begun(request)
        return request.begin(head, backend, asked.rest)

    def _key_of(self, named: dict[bytes, bytes], keys: Keys) -> Key | None:
        token = token_of(named)
        if token is None:
            return None
        if keys is not self._keys or token != self._key_seen:
            self._key = keys.find(token)
            self._keys, self._key_seen = keys, token
        return self._key

    # -- answers of ours -------------------------------------------------------------------------------------------------

    def _one_model(self, asked: _Asked, name: str | None) -> int:
        backend = None if name is None else self._services.directory.backend_named(name)
        if name is None or backend is None or not allows(asked.key, backend.endpoint):
            return self._refuse(asked, model_not_found(name or ""))
        return self._page(asked, 200, answers.model(name, backend.endpoint, backend.queue.status))

    def _health(self, asked: _Asked, backend: Backend) -> int:
        """Of a model, without asking it: it is parked, or the probe has no key."""
        if (refusal := backend.queue.refusal) is not None:
            return self._refuse(asked, refusal)
        return self._page(asked, 200, {"status": "ok", "parked": not backend.queue.is_open})

    def _page(self, asked: _Asked, status: int, content: dict[str, Any], *, fields: bytes = b"") -> int:
        used, keep, extra = _around(asked)
        if keep and not asked.head.minor:
            extra += b"connection: keep-alive\r\n"
        head_only = asked.head.method == b"HEAD"
        page = answers.page(status, content, extra=extra + fields, close=not keep, head_only=head_only)
        return self._answer(page, used, keep=keep)

    def _preflight(self, asked: _Asked) -> int:
        used, keep, extra = _around(asked)
        return self._answer(
            answers.preflight(permission(asked.head.named), extra=extra, close=not keep), used, keep=keep
        )

    def _refuse(self, asked: _Asked, refusal: Refusal) -> int:
        self._services.outcomes.failed("", refusal)
        used, keep, extra = _around(asked)
        error = answers.error(refusal, extra=extra, close=not keep, head_only=asked.head.method == b"HEAD")
        return self._answer(error, used, keep=keep)

    def _answer(self, data: bytes, used: int, *, keep: bool) -> int:
        self._client.write(data)
        self._client.answered(keep=keep)
        return used


def _around(asked: _Asked) -> tuple[int, bool, bytes]:
    """Bytes behind the head that are a body which nobody needs; whether another request can follow; lines of the answer's head."""
    used = _skippable(asked.head, asked.rest)
    extra = b"x-request-id: %b\r\n%b" % (asked.request_id, asked.cors)
    return used or 0, asked.head.keep_alive and used is not None, extra


def _is_of_a_foreign_page(named: dict[bytes, bytes]) -> bool:
    """What a browser on this machine sends for any page, unasked: whoever may reach us could else be made to ask. JSON that
    says it is JSON isn't: before that a browser asks by OPTIONS, and is told no."""
    origin = named.get(b"origin")
    if origin is None or named.get(b"content-type", b"").partition(b";")[0].strip().lower() == b"application/json":
        return False
    return origin.partition(b"://")[2].lower() != named.get(b"host", b"").lower()


def _comes_from_elsewhere(named: dict[bytes, bytes]) -> bool:
    """Whatever a browser sends for a page of another site, but where a person follows a link: that page sees nothing of it, nor
    has it within a frame, where a person might be led to press something that can't be seen."""
    origin = named.get(b"origin")
    if origin is not None:
        return origin.partition(b"://")[2].lower() != named.get(b"host", b"").lower()
    foreign = named.get(b"sec-fetch-site", b"none") in (b"cross-site", b"same-site")
    link = named.get(b"sec-fetch-mode") == b"navigate" and named.get(b"sec-fetch-dest", b"document") == b"document"
    return foreign and not link


def _skippable(head: RequestHead, rest: bytes) -> int | None:
    """Bytes of a body that nobody needs, if all of it is in `rest`. None: it isn't, so no request can follow."""
    length = head.length or 0
    return None if head.chunked or len(rest) < length else length
