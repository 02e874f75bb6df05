"""Where a body ends, found in its raw bytes as they pass: nothing is changed, copied or kept back.

Each framing has `take(data)`, which says how many bytes of `data` belong to the body, and `done`. Strict: a chunked body
that two parsers could read in two ways is an error, since the next message would begin at two places.
"""

from __future__ import annotations

import re
from typing import Final, Protocol

_LINE_MAX: Final = 1024
_TRAILERS_MAX: Final = 16 << 10
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\t\x20-\x7e\x80-\xff]*)?")
_PLAIN_SIZE = re.compile(rb"[0-9A-Fa-f]{1,15}\r\n")
_TRAILER = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[\t\x20-\x7e\x80-\xff]*")
_NO_TRAILERS = frozenset(
    b"content-length transfer-encoding host authorization connection content-type content-encoding content-range "
    b"x-api-key cookie set-cookie expect trailer upgrade te".split()
)
"""Fields that would change what was read before them; no sender may put them behind the body."""


class BadBody(Exception):
    """Its framing is broken; where the next message begins can't be known."""


class Framing(Protocol):
    done: bool

    def take(self, data: bytes, payload: list[bytes] | None = None) -> int:
        """How many bytes of `data`, from its beginning, belong to this body. Its content is appended to `payload`.

        Raises:
            BadBody: the framing is broken.
        """


class LengthBody:
    """Content-Length."""

    __slots__ = ("done", "left")

    def __init__(self, length: int) -> None:
        self.left = length
        self.done = length == 0

    def take(self, data: bytes, payload: list[bytes] | None = None) -> int:
        size = min(len(data), self.left)
        self.left -= size
        self.done = self.left == 0
        if payload is not None and size:
            payload.append(data if size == len(data) else data[:size])
        return size


class OpenBody:
    """Until the connection ends."""

    __slots__ = ("done",)

    def __init__(self) -> None:
        self.done = False

    def take(self, data: bytes, payload: list[bytes] | None = None) -> int:
        if payload is not None:
            payload.append(data)
        return len(data)


class ChunkedBody:
    """Transfer-Encoding: chunked."""

    __slots__ = ("_behind", "_left", "_line", "_trailers", "done")

    def __init__(self) -> None:
        self.done = False
        self._left = 0
        """Bytes of the chunk under way that are to come."""
        self._behind = 0
        """Bytes of the line end behind a chunk that are to come."""
        self._line = b""
        """Beginning of a line whose end is to come."""
        self._trailers = 0
        """Bytes of trailers so far, and 1 more as soon as the last chunk was seen."""

    def take(self, data: bytes, payload: list[bytes] | None = None) -> int:
        at, end = 0, len(data)
        while at < end:
            if not (self._left or self._behind or self._line or self._trailers):
                # A chunk that is there in whole, as streamed events are.
                size_line = _PLAIN_SIZE.match(data, at)
                if size_line is not None and (length := int(size_line[0], 16)):
                    begin = size_line.end()
                    stop = begin + length + 2
                    if stop <= end and data[stop - 2 : stop] == b"\r\n":
                        if payload is not None:
                            payload.append(data[begin : stop - 2])
                        at = stop
                        continue
            if self._left:
                size = min(self._left, end - at)
                if payload is not None:
                    payload.append(data[at : at + size])
                self._left -= size
                at += size
                if not self._left:
                    self._behind = 2
            elif self._behind:
                expected = b"\r\n"[2 - self._behind :]
                found = data[at : at + self._behind]
                if not expected.startswith(found):
                    raise BadBody("a chunk that is longer than it says")
                self._behind -= len(found)
                at += len(found)
            else:
                at = self._take_line(data, at)
                if self.done:
                    break
        return at

    def _take_line(self, data: bytes, at: int) -> int:
        found = data.find(b"\n", at)
        if found < 0:
            self._line += data[at:]
            self._check_line_length(len(self._line))
            return len(data)
        line = self._line + data[at : found + 1] if self._line else data[at : found + 1]
        self._line = b""
        self._check_line_length(len(line))
        if line[-2:] != b"\r\n":
            raise BadBody("a line of a chunked body that ends without carriage return")
        if self._trailers:
            self._take_trailer(line[:-2])
            return found + 1
        size = _SIZE.fullmatch(line, 0, len(line) - 2)
        if size is None:
            raise BadBody("the size of a chunk is no number")
        self._left = int(size[1], 16)
        if not self._left:
            self._trailers = 1
        return found + 1

    def _take_trailer(self, line: bytes) -> None:
        if not line:
            self.done = True
            return
        trailer = _TRAILER.fullmatch(line)
        if trailer is None or trailer[1].lower().replace(b"_", b"-") in _NO_TRAILERS:
            raise BadBody("a field that may not stand behind a body")
        self._trailers += len(line) + 2
        if self._trailers > _TRAILERS_MAX:
            raise BadBody(f"more than {_TRAILERS_MAX >> 10} KiB behind a body")

    def _check_line_length(self, length: int) -> None:
        if length > (_TRAILERS_MAX if self._trailers else _LINE_MAX):
            raise BadBody("a line of a chunked body without an end")
