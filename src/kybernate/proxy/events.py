"""An answer that was begun before there was one: a client that waits for a stream of events hears comments while its model comes.

Whoever sits between, and the client itself, take silence for the end. The price is the status: it is out as 200, so whatever goes
wrong from then on comes as an event, `error`, with the same object that would have been the answer. Pure.
"""

from __future__ import annotations

import json
from typing import Any, Final

from kybernate.proxy.answering import AnswerReader, BadAnswer
from kybernate.proxy.answers import error_object
from kybernate.proxy.body import chunk
from kybernate.proxy.codings import coding_of
from kybernate.proxy.heads import ResponseHead
from kybernate.proxy.refusals import Refusal

_OTHER_MAX: Final = 1 << 20
"""Bytes of an answer that is no stream of events."""
_LAST_CHUNK: Final = b"0\r\n\r\n"


class BegunAnswer(AnswerReader):
    """`begin` first; then any number of `beat`s; then the server's answer, or `failed`."""

    __slots__ = ("_chunks", "_is_events", "_other", "_other_size")

    def __init__(self, *, minor: int, keep_alive: bool) -> None:
        super().__init__(head_only=False, minor=0, keep_alive=keep_alive, upgrade=False)  # 0: its content only
        self._chunks = minor == 1
        self._is_events = False
        self._other: list[bytes] = []
        """Of an answer that is no stream of events."""
        self._other_size = 0
        if not self._chunks:
            self.close = True

    def begin(self, extra: bytes) -> bytes:
        """The head, and the first comment. `extra` are whole header lines."""
        return b"".join(
            (
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\n",
                b"transfer-encoding: chunked\r\n" if self._chunks else b"",
                b"connection: close\r\n" if self.close else b"",
                extra,
                b"\r\n",
                self.beat(),
            )
        )

    def beat(self) -> bytes:
        return self._framed(b": waiting for the model\n\n")

    def failed(self, refusal: Refusal) -> bytes:
        """The end."""
        return self._framed(_error(error_object(refusal))) + self._last()

    def feed(self, data: bytes) -> bytes:
        out = self._content(super().feed(data))
        if not self.done:
            return self._framed(out)
        return self._framed(out + self._as_event()) + self._last()

    def ending(self) -> bytes:
        return self._framed(self._as_event()) + self._last()

    def _take_head(self, head: ResponseHead) -> bytes:
        if head.status < 200:
            return self._take_interim(head)
        if (coding := head.named.get(b"content-encoding")) is not None and coding_of(coding) is not None:
            raise BadAnswer(f"the model's server answered in {coding.decode('latin-1')!r}, unasked")
        self._begin(head)
        content_type = next((value for name, value in head.fields if name.lower() == b"content-type"), b"")
        self._is_events = head.status == 200 and content_type.lower().startswith(b"text/event-stream")
        return b""

    def _content(self, out: bytes) -> bytes:
        if self._is_events or not out:
            return out
        self._other_size += len(out)
        if self._other_size > _OTHER_MAX:
            raise BadAnswer(f"the model's server answered with more than {_OTHER_MAX >> 20} MiB that are no events")
        self._other.append(out)
        return b""

    def _as_event(self) -> bytes:
        """All of an answer that is no stream of events."""
        if self._is_events:
            return b""
        text, self._other = b"".join(self._other), []
        if self.status < 400:
            return _event(text)
        try:
            error = json.loads(text)
        except (ValueError, RecursionError):
            error = None
        if not isinstance(error, dict) or not error.get("error"):
            message = text[:4096].decode(errors="replace") or f"the model's server answered {self.status}"
            error = error_object(Refusal(self.status, "model_error", message))
        return _error(error)

    def _framed(self, data: bytes) -> bytes:
        return chunk(data) if data and self._chunks else data

    def _last(self) -> bytes:
        return _LAST_CHUNK if self._chunks else b""


def _error(error: dict[str, Any]) -> bytes:
    return b"event: error\n" + _event(json.dumps(error, separators=(",", ":")).encode())


def _event(text: bytes) -> bytes:
    return b"".join(b"data: %b\n" % line for line in text.splitlines()) + b"\n" if text else b""
