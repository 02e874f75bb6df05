"""Bodies that came compressed, decoded to find the model in them: in small steps, and never beyond a limit.

A few kilobytes can stand for gigabytes. So what comes out is counted while it does, a step makes little of it, and windows are what
HTTP allows (8 MiB for zstd, 16 MiB for br). What can't be decoded here is refused by its name; `identity` is none.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable
from typing import Final, Protocol, cast

import brotli

if sys.version_info >= (3, 14):
    from compression.zstd import DecompressionParameter, ZstdDecompressor, ZstdError
else:
    from backports.zstd import DecompressionParameter, ZstdDecompressor, ZstdError

STEP: Final = 1 << 20
"""Bytes that come out of one step: about a millisecond, in which nothing else is served."""
_PIECE: Final = 64 << 10
"""Bytes that go into a step. What is behind a stream's end, or can't be used yet, is copied each time, so it must be little."""
_STREAMS_MAX: Final = 4096
"""In one body. Those who compress in parts make one of each 64 KiB at least; empty ones only cost time."""
ACCEPTED: Final = "gzip, deflate, zstd, br"
_ZSTD_WINDOW_LOG: Final = 23


class BadCoding(Exception):
    """It isn't what its Content-Encoding says. The text is for the client."""


class Stream(Protocol):
    """One compressed stream."""

    eof: bool

    @property
    def hungry(self) -> bool:
        """Whether it has used what it was given. Else it is to be called without anything more."""

    def decompress(self, data: bytes, size_max: int, /) -> bytes: ...

    @property
    def rest(self) -> bytes:
        """Input that lies behind the end."""


class _Zlib:
    def __init__(self, bits: int) -> None:
        self._inner = zlib.decompressobj(bits)
        self.eof = False

    @property
    def hungry(self) -> bool:
        return not self._inner.unconsumed_tail

    def decompress(self, data: bytes, size_max: int, /) -> bytes:
        out = self._inner.decompress(self._inner.unconsumed_tail + data, size_max)
        self.eof = self._inner.eof
        return out

    @property
    def rest(self) -> bytes:
        return self._inner.unused_data


class _Zstd:
    def __init__(self) -> None:
        self._inner = ZstdDecompressor(options={DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG})
        self.eof = False

    @property
    def hungry(self) -> bool:
        return self._inner.needs_input

    def decompress(self, data: bytes, size_max: int, /) -> bytes:
        out = self._inner.decompress(data, size_max)
        self.eof = self._inner.eof
        return out

    @property
    def rest(self) -> bytes:
        return self._inner.unused_data


class _Brotli:
    rest = b""  # it takes nothing behind its end

    def __init__(self) -> None:
        self._inner = brotli.Decompressor()
        self.eof = False

    @property
    def hungry(self) -> bool:
        return bool(self._inner.can_accept_more_data())

    def decompress(self, data: bytes, size_max: int, /) -> bytes:
        out = cast("bytes", self._inner.process(data, output_buffer_limit=size_max))
        self.eof = bool(self._inner.is_finished())
        return out


def _deflate(data: bytes) -> Stream:
    """As the standard has it, with zlib's head, or without, as many send it."""
    wrapped = len(data) >= 2 and data[0] & 0x0F == 8 and not int.from_bytes(data[:2], "big") % 31
    return _Zlib(zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS)


def _gzip(_: bytes) -> Stream:
    return _Zlib(16 + zlib.MAX_WBITS)


_STREAMS: Final[dict[str, Callable[[bytes], Stream]]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _deflate,
    "zstd": lambda _: _Zstd(),
    "br": lambda _: _Brotli(),
}
_IN_PARTS: Final = frozenset(("gzip", "x-gzip", "zstd"))
"""One stream may follow the other there."""


def coding_of(field: bytes) -> str | None:
    """Of a Content-Encoding, in lower case. None: it came as it is."""
    name = field.decode("latin-1").strip().lower()
    return None if name in ("", "identity") else name


def is_known(coding: str) -> bool:
    return coding in _STREAMS


class Decoder:
    """One body. `step` until it returns True; `decoded` then has it."""

    def __init__(self, coding: str, body: bytes, *, size_max: int) -> None:
        self._coding = coding
        self._made = _STREAMS[coding]
        self._stream = self._made(body)
        self._streams = 1
        self._body = memoryview(body)
        self._at = 0
        """Of the body, where the next piece begins."""
        self._max = size_max
        self.size = 0
        """Bytes decoded so far."""
        self._pieces: list[bytes] = []

    @property
    def decoded(self) -> bytes:
        return b"".join(self._pieces)

    def step(self) -> bool:
        """True: that was all.

        Raises:
            BadCoding: it is broken, cut off, or has something behind its end.
            OverflowError: it is larger than `size_max`.
        """
        stream = self._stream
        data = bytes(self._body[self._at : self._at + _PIECE]) if stream.hungry else b""
        cut_off = stream.hungry and not data
        self._at += len(data)
        try:
            out = stream.decompress(data, STEP)
        except (zlib.error, ZstdError, brotli.error, EOFError):
            raise BadCoding(f"the body is no {self._coding}, though its Content-Encoding says so") from None
        if out:
            self._pieces.append(out)
            self.size += len(out)
            if self.size > self._max:
                raise OverflowError
        if stream.eof:
            self._at -= len(stream.rest)
            return self._at == len(self._body) or self._begin_another()
        if cut_off and not out:
            raise BadCoding(f"the body is {self._coding} that ends too early")
        return False

    def _begin_another(self) -> bool:
        if self._coding not in _IN_PARTS:
            raise BadCoding(f"the body has something behind its {self._coding}")
        self._streams += 1
        if self._streams > _STREAMS_MAX:
            raise BadCoding(f"the body is more than {_STREAMS_MAX} streams of {self._coding}")
        self._stream = self._made(b"")
        return False
