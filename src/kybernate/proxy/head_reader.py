"""Heads in what a client sends: found, and kept as long as they aren't whole or the request in front of them is under way."""

from __future__ import annotations

import time
from typing import Final

from kybernate.proxy.heads import HEAD_MAX, BadHead, RequestHead, parse_request
from kybernate.proxy.refusals import Refusal

_PIPELINE_MAX: Final = 64 << 10


class HeadReader:
    """Of one connection."""

    __slots__ = ("data", "since")

    def __init__(self) -> None:
        self.data = b""
        """What isn't used yet."""
        self.since = 0.0
        """When the last of it came that began a head, by the monotonic clock."""

    def keep(self, data: bytes) -> bool:
        """It lies behind the request under way. False: that is more than anybody needs to send ahead."""
        self.data = self.data + data if self.data else data
        self.since = time.monotonic()
        return len(self.data) <= _PIPELINE_MAX

    def restart_clock(self) -> None:
        """The client could not be read from until now: that is none of its time."""
        self.since = time.monotonic()

    def clear(self) -> bytes:
        data, self.data = self.data, b""
        return data

    def next(self, data: bytes) -> tuple[RequestHead, bytes] | Refusal | None:
        """The next head and what lies behind it; `data` is all that came since the last one. None: it isn't whole yet."""
        if data[:1] in (b"\r", b"\n"):
            data = data[2:] if data[:2] == b"\r\n" else data  # one empty line before a request is customary
        end = data.find(b"\r\n\r\n")
        if end < 0 or end > HEAD_MAX:
            if not self.data:
                self.since = time.monotonic()
            self.data = data
            if len(data) > HEAD_MAX:
                return Refusal(431, "head_too_large", f"a head may have {HEAD_MAX} bytes")
            if data.count(b"\n") != data.count(b"\r\n"):
                return Refusal(400, "bad_request", "a head with a bare line feed")
            return None
        self.data = b""
        try:
            head = parse_request(data if end + 4 == len(data) else data[: end + 4])
        except BadHead as e:
            return Refusal(e.status, "bad_request", e.message)
        return head, data[end + 4 :]
