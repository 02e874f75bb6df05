"""What becomes of a client's request, decided by its head: a page of ours, a refusal, or an exchange with a model.

The order is that of what may be told to whom: names first, then what browsers ask without a key, health, then keys, then all else.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from kybernate.model.messages import Endpoint, Key
from kybernate.proxy import answers
from kybernate.proxy.backend import ServedModel
from kybernate.proxy.detours import BadQuery, ByItsBody, NoModel, ToModel, WithSlash, detour, without_slashes
from kybernate.proxy.heads import RequestHead
from kybernate.proxy.keys import Keys, allows, token_of
from kybernate.proxy.origins import is_preflight, permission
from kybernate.proxy.queueing import Refusal
from kybernate.proxy.refusals import no_such_model, nothing_there
from kybernate.proxy.request import Exchange
from kybernate.proxy.routing import BY_BODY, OneModel, Page

if TYPE_CHECKING:
    from kybernate.proxy.client_connection import Front

_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_FOREIGN: Final = Refusal(403, "foreign_page", "a page of another site may not ask here without a key")
_NEEDS_KEY: Final = Refusal(401, "invalid_api_key", "a valid API key is needed")


class Desk:
    """Of one connection. `rest` is what came behind a head; each method says how much of it belonged to that request."""

    __slots__ = ("_front", "_key", "_key_seen", "_keys")

    def __init__(self, front: Front) -> None:
        self._front = front
        self._keys: Keys | None = None
        self._key: Key | None = None
        self._key_seen = b""

    def take(self, head: RequestHead, rest: bytes) -> int:
        front = self._front
        worker = front.worker
        named = head.named
        request_id = named.get(b"x-request-id")
        if request_id is None or not _REQUEST_ID.fullmatch(request_id):
            request_id = worker.next_request_id()
        front.hear_from(named.get(b"origin", b""))
        path = head.path
        host = named.get(b"host", b"")
        if not worker.hosts.answers(host):
            text = f"this is not {host[:100].decode('latin-1')!r}: name it in activator.hosts"
            return self._refuse(head, Refusal(421, "misdirected", text), request_id, rest)
        if front.page_allowed and is_preflight(head.method, named):
            return self._preflight(head, request_id, rest)
        route = worker.routes.of(head.method, path, host)
        if route is None and (target := without_slashes(head.target)) != head.target:
            head.target = target
            path = head.path
            route = worker.routes.of(head.method, path, host)
        if route is Page.ALIVE or route is Page.READY:
            ready = worker.ready or route is Page.ALIVE
            return self._page(head, 200 if ready else 503, {"status": "ok" if ready else "not ready"}, request_id, rest)
        key: Key | None = None
        if worker.keys.needed:
            key = self._key_of(named)
        model = worker.models.get(route.model) if isinstance(route, Endpoint) else None
        if (
            model is not None
            and path == model.health
            and (not model.queue.is_open or (key is None and worker.keys.needed))
        ):
            return self._health(head, model, request_id, rest)
        if worker.keys.needed and key is None:
            return self._refuse(head, _NEEDS_KEY, request_id, rest)
        if route is Page.MODELS:
            endpoints = [endpoint for endpoint in worker.routes.endpoints if allows(key, endpoint)]
            return self._page(head, 200, answers.models(endpoints, worker.statuses()), request_id, rest)
        if route is BY_BODY and not worker.keys.needed and not front.page_allowed and _is_of_a_foreign_page(named):
            return self._refuse(head, _FOREIGN, request_id, rest)
        if isinstance(route, OneModel):
            return self._one_model(head, route.name, key, request_id, rest)
        if route is None and worker.upstream:
            return self._detour(head, key, request_id, rest)
        if route is not BY_BODY and (model is None or not allows(key, model.endpoint)):
            return self._refuse(head, nothing_there(head), request_id, rest)
        return self._exchange(head, model, key, request_id, rest)

    # -- what nobody else answers ----------------------------------------------------------------------------------------

    def _detour(self, head: RequestHead, key: Key | None, request_id: bytes, rest: bytes) -> int:
        """Other paths of models' servers. None of them knows of browsers what OpenAI's do, so these are refused more strictly."""
        worker = self._front.worker
        found = detour(worker.routes, head)
        if found is None:
            return self._refuse(head, nothing_there(head), request_id, rest)
        if not worker.keys.needed and not self._front.page_allowed and _comes_from_elsewhere(head.named):
            return self._refuse(head, _FOREIGN, request_id, rest)
        match found:
            case ByItsBody():
                return self._exchange(head, None, key, request_id, rest)
            case BadQuery(why):
                return self._refuse(head, Refusal(400, "bad_request", why), request_id, rest)
            case NoModel(name):
                return self._refuse(head, no_such_model(name), request_id, rest)
            case ToModel(endpoint, name, target) | WithSlash(endpoint, name, target):
                model = worker.models.get(endpoint.model)
                if model is None or not allows(key, endpoint):
                    return self._refuse(head, no_such_model(name), request_id, rest)
                if isinstance(found, WithSlash):
                    return self._redirect(head, target, request_id, rest)
                head.target = target
                if head.path == model.health and not model.queue.is_open:
                    return self._health(head, model, request_id, rest)
                return self._exchange(head, model, key, request_id, rest)

    def _exchange(
        self, head: RequestHead, model: ServedModel | None, key: Key | None, request_id: bytes, rest: bytes
    ) -> int:
        front = self._front
        exchange = front.exchange = Exchange(front, head, key=key, request_id=request_id)
        return exchange.begin(model, rest)

    def _key_of(self, named: dict[bytes, bytes]) -> Key | None:
        token = token_of(named)
        if token is None:
            return None
        keys = self._front.worker.keys
        if keys is not self._keys or token != self._key_seen:
            self._key = keys.find(token)
            self._keys, self._key_seen = keys, token
        return self._key

    # -- answers of ours -------------------------------------------------------------------------------------------------

    def _one_model(self, head: RequestHead, name: str | None, key: Key | None, request_id: bytes, rest: bytes) -> int:
        model = None if name is None else self._front.worker.model_named(name)
        if name is None or model is None or not allows(key, model.endpoint):
            return self._refuse(head, no_such_model(name or ""), request_id, rest)
        return self._page(head, 200, answers.model(name, model.endpoint, model.queue.status), request_id, rest)

    def _health(self, head: RequestHead, model: ServedModel, request_id: bytes, rest: bytes) -> int:
        """Of a model, without asking it: it is parked, or the probe has no key."""
        if (refused := model.queue.refused) is not None:
            return self._refuse(head, refused, request_id, rest)
        return self._page(head, 200, {"status": "ok", "parked": not model.queue.is_open}, request_id, rest)

    def _page(
        self,
        head: RequestHead,
        status: int,
        content: dict[str, Any],
        request_id: bytes,
        rest: bytes,
        *,
        fields: bytes = b"",
    ) -> int:
        used, keep, extra = self._around(head, request_id, rest)
        if keep and not head.minor:
            extra += b"connection: keep-alive\r\n"
        head_only = head.method == b"HEAD"
        self._front.write(answers.page(status, content, extra=extra + fields, close=not keep, head_only=head_only))
        self._front.answered(keep=keep)
        return used

    def _redirect(self, head: RequestHead, target: bytes, request_id: bytes, rest: bytes) -> int:
        fields = b"location: %b\r\n" % target
        return self._page(head, 308, {"location": target.decode()}, request_id, rest, fields=fields)

    def _preflight(self, head: RequestHead, request_id: bytes, rest: bytes) -> int:
        used, keep, extra = self._around(head, request_id, rest)
        self._front.write(answers.preflight(permission(head.named), extra=extra, close=not keep))
        self._front.answered(keep=keep)
        return used

    def _refuse(self, head: RequestHead, refusal: Refusal, request_id: bytes, rest: bytes) -> int:
        self._front.worker.failed(refusal, None)
        used, keep, extra = self._around(head, request_id, rest)
        self._front.write(answers.error(refusal, extra=extra, close=not keep, head_only=head.method == b"HEAD"))
        self._front.answered(keep=keep)
        return used

    def _around(self, head: RequestHead, request_id: bytes, rest: bytes) -> tuple[int, bool, bytes]:
        """Bytes of `rest` that are a body which nobody needs; whether another request can follow; lines of the answer's head."""
        used = _skippable(head, rest)
        extra = b"x-request-id: %b\r\n%b" % (request_id, self._front.cors)
        return used or 0, head.keep_alive and used is not None, extra


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
