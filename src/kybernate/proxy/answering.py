"""One answer of a model's server on its way to the client: head rewritten, body untouched, its end found.

Pure: bytes in, bytes out.
"""

from __future__ import annotations

from typing import Final

from kybernate.proxy.framing import BadBody, ChunkedBody, Framing, LengthBody, OpenBody
from kybernate.proxy.heads import HEAD_MAX, BadHead, ResponseHead, parse_response, response_for_client, without_cors

_INTERIM_MAX: Final = 16
"""1xx answers before the real one; more is a server that never answers."""


class BadAnswer(Exception):
    """The server speaks no HTTP that could be passed on. If nothing was passed on yet, the client can be told so."""


class AnswerReader:
    """`close`: the client's connection ends behind this answer."""

    __slots__ = (
        "_body",
        "_buffer",
        "_dechunk",
        "_interims",
        "_upgrade",
        "_wants_keep_alive",
        "body_began",
        "close",
        "done",
        "early",
        "excess",
        "extra",
        "head_only",
        "minor",
        "owns_cors",
        "reusable",
        "status",
        "tunnel",
    )

    def __init__(self, *, head_only: bool, minor: int, keep_alive: bool, upgrade: bool) -> None:
        self.extra = b""
        self.close = not keep_alive
        self.owns_cors = False
        self.status = 0
        """0 until the head was read."""
        self.done = False
        self.tunnel = False
        """The protocol was changed; whatever comes is passed on."""
        self.reusable = False
        """Whether the server's connection can take another request, once done."""
        self.body_began = False
        """The first of the body came with the head."""
        self.early = b""
        """What came with the head of an answer that changed the protocol."""
        self.excess = False
        """The server sent more than its answer."""
        self.head_only = head_only
        self.minor = minor
        self._upgrade = upgrade
        self._wants_keep_alive = keep_alive and not minor
        self._body: Framing | None = None
        self._buffer = b""
        self._dechunk = False
        self._interims = 0

    def feed(self, data: bytes) -> bytes:
        """What the client gets for it.

        Raises:
            BadAnswer: the connection to the server can't be used any more. `status` says whether the client has the head.
        """
        if self._body is not None:
            if self._dechunk:
                return self._feed_body(data)
            try:  # the same without a list, since each token of a stream comes by here
                size = self._body.take(data)
            except BadBody as e:
                raise BadAnswer(str(e)) from None
            if not self._body.done:
                return data
            self.done = True
            if len(data) == size:
                return data
            self._has_excess()
            return data[:size]
        if self.tunnel:
            return data
        out = b""
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        while not self.status:
            end = data.find(b"\r\n\r\n")
            if end < 0 or end > HEAD_MAX:
                if len(data) > HEAD_MAX or (end < 0 and data.count(b"\n") != data.count(b"\r\n")):
                    raise BadAnswer("the model's server answered with a head that is too long or malformed")
                self._buffer = data
                return out
            try:
                head = parse_response(data if end + 4 == len(data) else data[: end + 4])
            except BadHead as e:
                raise BadAnswer(e.message) from None
            data = data[end + 4 :]
            out += self._take_head(head)
        if self.status == 101:
            self.early = data
            return out + data
        if self.done:
            if data:
                self._has_excess()
            return out
        if not data:
            return out
        self.body_began = True
        return out + self._feed_body(data)

    def own_head(self, extra: bytes, *, owns_cors: bool) -> None:
        """Before its head is there: `extra` are whole lines of ours for it. `owns_cors`: what it says to browsers of other sites'
        pages is ours to say."""
        self.extra = extra
        self.owns_cors = owns_cors

    def close_behind(self) -> None:
        """Before its head is there: the client's connection ends behind it."""
        self.close = True

    def end(self) -> bool:
        """The server closed its connection. True: that was the answer's end; False: something is missing."""
        if isinstance(self._body, OpenBody):
            self._body.done = self.done = True
        return self.done

    def ending(self) -> bytes:
        """What the client gets behind all else, where the end of the server's connection was that of the answer."""
        return b""

    def _feed_body(self, data: bytes) -> bytes:
        body = self._body
        assert body is not None
        payload: list[bytes] | None = [] if self._dechunk else None
        try:
            size = body.take(data, payload)
        except BadBody as e:
            raise BadAnswer(str(e)) from None
        if body.done:
            self.done = True
            if len(data) > size:
                self._has_excess()
                data = data[:size]
        return data if payload is None else b"".join(payload)

    def _has_excess(self) -> None:
        self.excess = True
        self.reusable = False

    def _take_head(self, head: ResponseHead) -> bytes:
        if head.status < 200:
            return self._take_interim(head)
        empty = self._begin(head)
        if self._dechunk or isinstance(self._body, OpenBody):
            self.close = True
        if self.owns_cors:
            without_cors(head)
        return response_for_client(
            head,
            extra=self.extra,
            dechunk=self._dechunk or empty,
            close=self.close,
            switching=False,
            keep_alive=self._wants_keep_alive and not self.close,
        )

    def _begin(self, head: ResponseHead) -> bool:
        """What its head says of its body. Whether there is none."""
        self.status = head.status
        self.reusable = head.keep_alive
        empty = self.head_only or head.status in (204, 304)
        if empty or head.length == 0:
            self.done = True
        elif head.chunked:
            self._body = ChunkedBody()
            self._dechunk = not self.minor
        elif head.length is not None:
            self._body = LengthBody(head.length)
        else:
            self._body = OpenBody()
            self.reusable = False
        return empty

    def _take_interim(self, head: ResponseHead) -> bytes:
        self._interims += 1
        if head.status == 101:
            if not self._upgrade:
                raise BadAnswer("the model's server changed the protocol unasked")
            self.status = 101
            self.tunnel = self.close = True
            return response_for_client(
                head, extra=self.extra, dechunk=False, close=False, switching=True, keep_alive=False
            )
        if head.length or head.chunked or self._interims > _INTERIM_MAX:
            raise BadAnswer("the model's server sent an impossible interim answer")
        if not self.minor:
            return b""  # HTTP/1.0 doesn't know them
        return response_for_client(head, extra=b"", dechunk=False, close=False, switching=False, keep_alive=False)
