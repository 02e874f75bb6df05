"""Whether anything still moves on an answer that has begun, by an observation from time to time: a stream or websocket that is only
open must not keep its model in VRAM, nor must a client that takes its answer drop by drop. Pure.

Limits: a server that keeps an open stream alive with bytes of its own (comments in an event stream) is one that still speaks, since
servers do that while they compute, too.
"""

from __future__ import annotations

from typing import Final

READ_RATE: Final = 16 << 10
"""Bytes/s that a client has to take of what waits for it: an answer of words is read in a minute then, whoever reads."""
_CONTROL = frozenset((9, 10))
"""Opcodes of pings and pongs."""
_CONTROL_MAX: Final = 125


class StallDetector:
    """Of one connection. `still` says how it stood at the last observation."""

    __slots__ = ("_at", "_from_client", "_moved", "_to_client", "still")

    def __init__(self, *, websocket: bool = False) -> None:
        self.still = False
        self._at: float | None = None
        self._moved = 0
        self._from_client = Frames() if websocket else None
        self._to_client = Frames() if websocket else None

    def received(self, data: bytes) -> None:
        """Behind the change of the protocol, from the client."""
        if self._from_client is not None:
            self._from_client.feed(data)

    def sent(self, data: bytes) -> None:
        """The same towards it."""
        if self._to_client is not None:
            self._to_client.feed(data)

    def observe(self, now: float, *, moved: int, unread: bool, patience_s: float) -> bool:
        """Whether `still` has changed.

        Args:
            moved: bytes so far, in both directions, without those that lie here.
            unread: some do lie here, since the client doesn't take them.
        """
        before = self.still
        moved -= sum(frames.pings for frames in (self._from_client, self._to_client) if frames is not None)
        if self._at is None or moved - self._moved > (READ_RATE * (now - self._at) if unread else 0):
            self._at, self._moved, self.still = now, moved, False
        else:
            self.still = now - self._at > patience_s
        return self.still is not before


class Frames:
    """One direction of a websocket: how much of it is pings and pongs, which both sides send while nobody speaks."""

    __slots__ = ("_head", "_is_ping", "_left", "pings")

    def __init__(self) -> None:
        self.pings = 0
        """Bytes."""
        self._head = b""
        """Of the next frame, as far as it has come."""
        self._left = 0
        """Bytes of the present frame that are to come."""
        self._is_ping = False

    def feed(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            if self._left:
                took = min(self._left, len(data) - at)
                self._left -= took
                self.pings += took if self._is_ping else 0
                at += took
            else:
                self._head += data[at : at + 1]
                at += 1
                self._begin()

    def _begin(self) -> None:
        head = self._head
        if len(head) < 2:
            return
        short = head[1] & 0x7F
        more = {126: 2, 127: 8}.get(short, 0)
        if len(head) < 2 + more:
            return
        length = int.from_bytes(head[2:], "big") if more else short
        self._left = length + (4 if head[1] & 0x80 else 0)
        self._is_ping = head[0] & 0x0F in _CONTROL and length <= _CONTROL_MAX
        self.pings += len(head) if self._is_ping else 0
        self._head = b""
