"""How long a client may take, for what. Looked at once a second, so that no request pays for a timer."""

from __future__ import annotations

from typing import Final

from kybernate.proxy.phases import Phase
from kybernate.proxy.refusals import Refusal
from kybernate.proxy.request import Request

HEAD_S: Final = 10.0
"""A head that isn't whole after so long comes from somebody who wants to keep the connection busy."""
BODY_S: Final = 30.0
BODY_RATE: Final = 1000
"""A body that is read whole may take BODY_S, and a second more for each so many bytes."""
STALL_S: Final = 120.0
"""A body passing through that stands still for so long."""
UNREAD_S: Final = 300.0
"""An answer that the client doesn't read for so long."""
UNREAD_LEAVING_S: Final = 30.0
"""The same while the model shall leave the GPU: others wait for it."""
LINGER_S: Final = 2.0
"""What a client gets to read an error before a connection with unread data on it is reset."""


def unread_max_s(request: Request | None) -> float:
    """For the answer to it, or for what is left of earlier ones."""
    if request is None or request.upstream is None or request.backend is None or request.backend.queue.is_open:
        return UNREAD_S
    return UNREAD_LEAVING_S


def head_is_late(now: float, since: float) -> Refusal | None:
    if now - since <= HEAD_S:
        return None
    return Refusal(408, "timeout", f"the request's head was not there after {HEAD_S:g} s")


def body_is_late(request: Request, now: float, *, since: float) -> Refusal | None:
    """`since`: when the last of it came. What it gets depends on whether anything of it has gone on."""
    if request.phase is Phase.READING and now - request.arrived > BODY_S + request.bytes_in / BODY_RATE:
        return Refusal(408, "timeout", "the request's body came too slowly")
    if request.phase is Phase.SENT and not request.body.done and now - since > STALL_S:
        return Refusal(408, "timeout", f"no byte of the request's body came for {STALL_S:g} s")
    return None
