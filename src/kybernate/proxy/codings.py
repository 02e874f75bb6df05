"""Bodies that came compressed, decoded to find the model in them: in small steps, and never beyond a limit.

A few kilobytes can stand for gigabytes. So what comes out is counted while it does, a step makes little of it, and windows are what
HTTP allows (8 MiB for zstd, 16 MiB for br). What can't be decoded here is refused by its name; `identity` is none.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Final, Protocol, cast

import brotli
from backports.zstd import DecompressionParameter, ZstdDecompressor, ZstdError

STEP: Final = 1 << 20
"""Bytes that come out of one step: about a millisecond, in which nothing else is served."""
ACCEPTED: Final = "gzip, deflate, zstd, br"
_ZSTD_WINDOW_LOG: Final = 23


class BadCoding(Exception):
    """It isn't what its Content-Encoding says. The text is for the client."""


class Stream(Protocol):
    """One compressed stream."""

    eof: bool

    def decompress(self, data: bytes, size_max: int, /) -> bytes: ...

    @property
    def rest(self) -> bytes:
        """Input that wasn't used yet, also what lies behind the end."""


class _Zlib:
    def __init__(self, bits: int) -> None:
        self._inner = zlib.decompressobj(bits)
        self.eof = False

    def decompress(self, data: bytes, size_max: int, /) -> bytes:
        out = self._inner.decompress(data, size_max)
        self.eof = self._inner.eof
        return out

    @property
    def rest(self) -> bytes:
        return self._inner.unused_data if self.eof else self._inner.unconsumed_tail


class _Zstd:
    def __init__(self) -> None:
        self._inner = ZstdDecompressor(options={DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG})
        self.eof = False

    def decompress(self, data: bytes, size_max: int, /) -> bytes:
        out = self._inner.decompress(data, size_max)
        self.eof = self._inner.eof
        return out

    @property
    def rest(self) -> bytes:
        return self._inner.unused_data if self.eof else b""  # it keeps what it couldn't use yet


class _Brotli:
    rest = b""  # it keeps what it couldn't use yet, and takes nothing behind its end

    def __init__(self) -> None:
        self._inner = brotli.Decompressor()
        self.eof = False

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
        self._left = body
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
        data, stream = self._left, self._stream
        try:
            out = stream.decompress(data, STEP)
        except (zlib.error, ZstdError, brotli.error, EOFError):
            raise BadCoding(f"the body is no {self._coding}, though its Content-Encoding says so") from None
        self._left = stream.rest
        if out:
            self._pieces.append(out)
            self.size += len(out)
            if self.size > self._max:
                raise OverflowError
        if not stream.eof:
            if not out and not self._left:
                raise BadCoding(f"the body is {self._coding} that ends too early")
            return False
        if not self._left:
            return True
        if self._coding not in _IN_PARTS:
            raise BadCoding(f"the body has something behind its {self._coding}")
        self._stream = self._made(self._left)
        return False
