"""Which model a body names: JSON, which is read whole first; a form, which goes on as soon as that is known; either one compressed.

A reader is told whenever more of its request's body is there.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from kybernate.proxy import model_field
from kybernate.proxy.backend import Backend
from kybernate.proxy.body import RequestBody
from kybernate.proxy.codings import ACCEPTED, BadCoding, Decoder, coding_of, is_known
from kybernate.proxy.forms import BadForm, ModelField, field_of
from kybernate.proxy.heads import RequestHead
from kybernate.proxy.refusals import Refusal, held_full, model_not_found, not_found, too_large
from kybernate.proxy.routing import is_openais


class Unaddressed(Exception):
    """What kind of body it is can be seen by its head, and that it won't do."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class Unnamed(Protocol):
    """A request whose body is to name its model."""

    @property
    def head(self) -> RequestHead: ...

    @property
    def body(self) -> RequestBody: ...

    @property
    def body_max(self) -> int:
        """Bytes."""

    @property
    def over(self) -> bool: ...

    def find(self, name: str) -> Backend | None:
        """None: there is none of that name for this client."""

    def look_for_events(self, content: bytes) -> None:
        """Whether that JSON asks for a stream of events, whose client is told that it is waited for."""

    def reject(self, refusal: Refusal) -> None:
        """Perhaps while its body is still to come."""

    def refuse(self, refusal: Refusal) -> None:
        """With its body read to the end."""

    def arrive(self, backend: Backend, *, length: int | None, decoded: bool = False) -> None:
        """It goes to this model. `length` is that of its body, where that is another than the client's; `decoded`: it is no longer
        in the coding that it came in."""


class Reader(Protocol):
    def on_body(self, request: Unnamed) -> None:
        """More of the body is in `request.body.content`."""


class _Json:
    """Of all requests."""

    def on_body(self, request: Unnamed) -> None:
        body = request.body
        if not body.done or body.content is None:
            return
        text = body.take_content()
        try:
            name = model_field.model_in(text)
        except model_field.BadName as e:
            _names_none(request, str(e))
            return
        backend = _find(request, name)
        if backend is None:
            return
        request.look_for_events(text)
        wanted = backend.endpoint.rewrite_model
        if wanted is not None and wanted != name:
            text = model_field.with_model(text, wanted)
        body.ahead.append(text)
        request.arrive(backend, length=len(text))


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


def _find(request: Unnamed, name: str) -> Backend | None:
    """None: there is none of that name for this client, and it was told so."""
    backend = request.find(name)
    if backend is None:
        request.reject(model_not_found(name))
    return backend


def _names_none(request: Unnamed, why: str) -> None:
    head = request.head
    request.reject(Refusal(400, "invalid_body", why) if is_openais(head.path) else not_found(head))


class _Form:
    def __init__(self, field: ModelField) -> None:
        self._field = field
        self._read = 0
        """Pieces of the content."""

    def on_body(self, request: Unnamed) -> None:
        field, body = self._field, request.body
        content = body.content
        assert content is not None
        try:
            while self._read < len(content):
                self._read += 1
                field.feed(content[self._read - 1])
            if body.done:
                field.end()
        except BadForm as e:
            _names_none(request, str(e))
            return
        if field.name is not None:
            self._go_on(request, field.name, content)

    def _go_on(self, request: Unnamed, name: str, content: list[bytes]) -> None:
        backend = _find(request, name)
        if backend is None:
            return
        known = b"".join(content)
        size = len(known)
        wanted = backend.endpoint.rewrite_model
        if wanted is not None and wanted != name:
            known = self._field.with_name(known, wanted)
        body, length = request.body, request.head.length
        if body.done:
            length = size
        body.ahead.append(known)
        body.go_on_as_form(self._field, rechunks=length is None)
        request.arrive(backend, length=None if length is None else length + len(known) - size)


class _Coded:
    """Decoded once it is complete, a step each time the loop comes round."""

    def __init__(self, coding: str, content_type: bytes) -> None:
        self._coding = coding
        self._content_type = content_type

    def on_body(self, request: Unnamed) -> None:
        body = request.body
        if not body.done or body.content is None:
            return
        raw = body.take_content()
        decoder = Decoder(self._coding, raw, size_max=request.body_max)
        self._decode(request, decoder, raw)

    def _decode(self, request: Unnamed, decoder: Decoder, raw: bytes) -> None:
        if request.over:
            return
        before = decoder.size
        try:
            done = decoder.step()
        except BadCoding as e:
            request.refuse(Refusal(400, "invalid_body", str(e)))
            return
        except OverflowError:
            request.refuse(too_large(request.body_max, "a body, once decoded,"))
            return
        if not request.body.keep(decoder.size - before):
            request.refuse(held_full())
        elif done:
            self._go_on(request, decoder.decoded, raw)
        else:
            asyncio.get_running_loop().call_soon(self._decode, request, decoder, raw)

    def _go_on(self, request: Unnamed, plain: bytes, raw: bytes) -> None:
        field: ModelField | None = None
        try:
            if _is_form(self._content_type):
                field = field_of(plain, self._content_type)
            name = model_field.model_in(plain) if field is None or field.name is None else field.name
        except (BadForm, model_field.BadName) as e:
            _names_none(request, str(e))
            return
        backend = _find(request, name)
        if backend is None:
            return
        if field is None:
            request.look_for_events(plain)
        wanted = backend.endpoint.rewrite_model
        if wanted is None or wanted == name:
            request.body.give_back(len(plain))
            request.body.ahead.append(raw)
            request.arrive(backend, length=len(raw))
            return
        request.body.give_back(len(raw))
        # Only what can be read can be changed; its server needs not know the coding then.
        text = model_field.with_model(plain, wanted) if field is None else field.with_name(plain, wanted)
        request.body.ahead.append(text)
        request.arrive(backend, length=len(text), decoded=True)
