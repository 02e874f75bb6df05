"""What is seen of a request that takes longer than a second: whether anything still moves on it, and whether its client shall hear
that its model is waited for. Made only for those, so that others don't pay for it.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from kybernate.proxy.events import BegunAnswer
from kybernate.proxy.phases import Phase
from kybernate.proxy.stall_detector import Movement

if TYPE_CHECKING:
    from kybernate.proxy.request import Exchange


class Watch:
    __slots__ = ("_beat_at", "_movement")

    def __init__(self) -> None:
        self._movement: Movement | None = None
        """From the first look behind the answer's first byte on, or behind the request where that has a limit, too."""
        self._beat_at = inf

    @property
    def still(self) -> bool:
        return self._movement is not None and self._movement.still

    @property
    def expects_events(self) -> bool:
        return self._beat_at != inf

    def expect_events(self, *, first_at: float) -> None:
        """Its client wants a stream of events: it hears of its model's coming from then on."""
        self._beat_at = first_at

    def begin_tunnel(self, *, websocket: bool, early: bytes) -> None:
        """The protocol was changed; `early` came with that."""
        self._movement = Movement(websocket=websocket)
        self._movement.went(early)

    def came(self, data: bytes) -> None:
        """Of a tunnel, from the client."""
        if self._movement is not None:
            self._movement.came(data)

    def went(self, data: bytes) -> None:
        """The same towards it."""
        if self._movement is not None:
            self._movement.went(data)

    def look(self, exchange: Exchange, now: float, *, left: int) -> None:
        """`left`: bytes of the answer that the client hasn't taken."""
        if now >= self._beat_at and not exchange.answer.status:
            self._beat(exchange, now)
        model = exchange.model
        if model is None or exchange.upstream is None:
            return
        limits = model.endpoint.limits
        patience = limits.stream_idle_s if exchange.has_begun else limits.first_byte_s
        if self._movement is None:
            if patience is None and not exchange.has_begun:
                return
            self._movement = Movement()
        moved = exchange.bytes_in + exchange.bytes_out - left
        patience_s = inf if patience is None else patience
        if self._movement.look(now, moved=moved, unread=left > 0, patience_s=patience_s):
            model.stilled(exchange)

    def _beat(self, exchange: Exchange, now: float) -> None:
        """Its model is still to come. The first time that begins the answer."""
        answer, front = exchange.answer, exchange.front
        every_s = front.worker.heartbeat_s
        if every_s is None:
            return
        self._beat_at = now + every_s
        if isinstance(answer, BegunAnswer):
            front.write(answer.beat())
        elif exchange.phase in (Phase.HELD, Phase.CONNECTING):
            begun = exchange.answer = BegunAnswer(minor=answer.minor, keep_alive=not answer.close)
            front.write(begun.begin(b"x-request-id: %b\r\n%b" % (exchange.request_id, front.cors)))
