"""What is seen of a request that takes longer than a second: whether anything still moves on it, and when its client shall hear
that its model is waited for. Made only for those, so that others don't pay for it. Pure.
"""

from __future__ import annotations

from math import inf

from kybernate.model.messages import Limits
from kybernate.proxy.stall_detector import StallDetector


class Watch:
    __slots__ = ("_beat_at", "_detector")

    def __init__(self, *, beat_at: float = inf) -> None:
        """`beat_at`: its client wants a stream of events, and hears of its model's coming from then on (monotonic clock)."""
        self._detector: StallDetector | None = None
        """From the first look behind the answer's first byte on, or behind the request where that has a limit, too."""
        self._beat_at = beat_at

    @property
    def still(self) -> bool:
        return self._detector is not None and self._detector.still

    def begin_tunnel(self, *, websocket: bool, early: bytes) -> None:
        """The protocol was changed; `early` came with that."""
        self._detector = StallDetector(websocket=websocket)
        self._detector.sent(early)

    def received(self, data: bytes) -> None:
        """Of a tunnel, from the client."""
        if self._detector is not None:
            self._detector.received(data)

    def sent(self, data: bytes) -> None:
        """The same towards it."""
        if self._detector is not None:
            self._detector.sent(data)

    def beats(self, now: float, *, every_s: float | None) -> bool:
        """Whether its client is to hear now that it is waited for; then again after `every_s`, None: never."""
        if now < self._beat_at or every_s is None:
            return False
        self._beat_at = now + every_s
        return True

    def observe(self, now: float, *, moved: int, left: int, begun: bool, limits: Limits) -> bool:
        """Whether `still` has changed.

        Args:
            moved: bytes so far, in both directions.
            left: bytes of the answer that the client hasn't taken.
            begun: the first byte of its answer's body is out: before that its model may well be reading a long prompt.
        """
        patience_s = limits.stream_idle_s if begun else limits.first_byte_s
        if self._detector is None:
            if patience_s is None and not begun:
                return False
            self._detector = StallDetector()
        patience_s = inf if patience_s is None else patience_s
        return self._detector.observe(now, moved=moved - left, unread=left > 0, patience_s=patience_s)
