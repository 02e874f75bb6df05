"""Which model a body names: JSON, which is read whole first; a form, which goes on as soon as that is known; either one compressed.

A reader is told whenever more of its request's body is there.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

from kybernate.proxy import model_field
from kybernate.proxy.body import too_large
from kybernate.proxy.codings import ACCEPTED, BadCoding, Decoder, coding_of, is_known
from kybernate.proxy.forms import BadForm, ModelField, field_of
from kybernate.proxy.heads import RequestHead
from kybernate.proxy.queueing import Refusal
from kybernate.proxy.refusals import no_such_model, nothing_there
from kybernate.proxy.routing import is_openais

if TYPE_CHECKING:
    from kybernate.proxy.backend import ServedModel
    from kybernate.proxy.request import Exchange


class Unaddressed(Exception):
    """What kind of body it is can be seen by its head, and that it won't do."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class Reader(Protocol):
    def came(self, exchange: Exchange) -> None:
        """More of the body is in `exchange.body.content`."""


class _Json:
    """Of all requests."""

    def came(self, exchange: Exchange) -> None:
        content = exchange.body.content
        if not exchange.body.done or content is None:
            return
        text = content[0] if len(content) == 1 else b"".join(content)
        exchange.body.content = None
        try:
            name = model_field.model_in(text)
        except model_field.BadName as e:
            _names_none(exchange, str(e))
            return
        model = _find(exchange, name)
        if model is None:
            return
        _look_for_events(exchange, text)
        wanted = model.endpoint.rewrite_model
        if wanted is not None and wanted != name:
            text = model_field.with_model(text, wanted)
        exchange.body.ahead.append(text)
        exchange.arrive(model, length=len(text))


_JSON: Final = _Json()


def reader_of(head: RequestHead) -> Reader:
    """
    Raises:
        Unaddressed: nobody here could read it.
    """
    named = head.named
    content_type = named.get(b"content-type", b"")
    encoding = named.get(b"content-encoding")
    coding = None if encoding is None else coding_of(encoding)
    if coding is not None:
        if not is_known(coding):
            text = f"a body in {coding[:60]!r} can't be read here; these can: {ACCEPTED}"
            raise Unaddressed(Refusal(415, "unsupported_coding", text))
        return _Coded(coding, content_type)
    if not _is_form(content_type):
        return _JSON
    try:
        return _Form(ModelField(content_type))
    except BadForm as e:
        raise Unaddressed(Refusal(400, "invalid_body", str(e))) from None


def _is_form(content_type: bytes) -> bool:
    return content_type[:10].lower() == b"multipart/"


def _find(exchange: Exchange, name: str) -> ServedModel | None:
    """None: there is none of that name for this client, and it was told so."""
    model = exchange.front.worker.model_named(name)
    if model is not None and exchange.may_ask(model.endpoint):
        return model
    exchange.turn_down(no_such_model(name))
    return None


def _names_none(exchange: Exchange, why: str) -> None:
    head = exchange.head
    exchange.turn_down(Refusal(400, "invalid_body", why) if is_openais(head.path) else nothing_there(head))


def _look_for_events(exchange: Exchange, text: bytes) -> None:
    every_s = exchange.front.worker.heartbeat_s
    if every_s is not None and model_field.wants_events(text):
        exchange.expect_events(every_s=every_s)


class _Form:
    def __init__(self, field: ModelField) -> None:
        self._field = field
        self._read = 0
        """Pieces of the content."""

    def came(self, exchange: Exchange) -> None:
        field, body = self._field, exchange.body
        content = body.content
        assert content is not None
        try:
            while self._read < len(content):
                self._read += 1
                field.feed(content[self._read - 1])
            if body.done:
                field.end()
        except BadForm as e:
            _names_none(exchange, str(e))
            return
        if field.name is not None:
            self._go_on(exchange, field.name, content)

    def _go_on(self, exchange: Exchange, name: str, content: list[bytes]) -> None:
        model = _find(exchange, name)
        if model is None:
            return
        known = b"".join(content)
        size = len(known)
        wanted = model.endpoint.rewrite_model
        if wanted is not None and wanted != name:
            known = self._field.with_name(known, wanted)
        body, length = exchange.body, exchange.head.length
        if body.done:
            length = size
        body.ahead.append(known)
        body.go_on_as_form(self._field, rechunks=length is None)
        exchange.arrive(model, length=None if length is None else length + len(known) - size)


class _Coded:
    """Decoded once it is complete, a step each time the loop comes round."""

    def __init__(self, coding: str, content_type: bytes) -> None:
        self._coding = coding
        self._content_type = content_type

    def came(self, exchange: Exchange) -> None:
        body = exchange.body
        if not body.done or body.content is None:
            return
        raw = b"".join(body.content)
        body.content = None
        decoder = Decoder(self._coding, raw, size_max=exchange.front.worker.body_max)
        self._decode(exchange, decoder, raw)

    def _decode(self, exchange: Exchange, decoder: Decoder, raw: bytes) -> None:
        if exchange.over:
            return
        before = decoder.size
        try:
            done = decoder.step()
        except BadCoding as e:
            exchange.refuse(Refusal(400, "invalid_body", str(e)))
            return
        except OverflowError:
            exchange.refuse(too_large(exchange.front.worker.body_max, "a body, once decoded,"))
            return
        if not exchange.body.keep(decoder.size - before):
            exchange.refuse(Refusal(429, "held_full", "too many bodies wait here", 1.0))
        elif done:
            self._go_on(exchange, decoder.decoded, raw)
        else:
            asyncio.get_running_loop().call_soon(self._decode, exchange, decoder, raw)

    def _go_on(self, exchange: Exchange, plain: bytes, raw: bytes) -> None:
        field: ModelField | None = None
        try:
            if _is_form(self._content_type):
                field = field_of(plain, self._content_type)
            name = model_field.model_in(plain) if field is None or field.name is None else field.name
        except (BadForm, model_field.BadName) as e:
            _names_none(exchange, str(e))
            return
        model = _find(exchange, name)
        if model is None:
            return
        if field is None:
            _look_for_events(exchange, plain)
        wanted = model.endpoint.rewrite_model
        if wanted is None or wanted == name:
            exchange.body.give_back(len(plain))
            exchange.body.ahead.append(raw)
            exchange.arrive(model, length=len(raw))
            return
        exchange.body.give_back(len(raw))
        # Only what can be read can be changed; its server needs not know the coding then.
        text = model_field.with_model(plain, wanted) if field is None else field.with_name(plain, wanted)
        exchange.body.ahead.append(text)
        exchange.arrive(model, length=len(text), decoded=True)
