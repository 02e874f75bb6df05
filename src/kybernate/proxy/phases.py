"""How far a request has come, and how a client's connection stands."""

from __future__ import annotations

import enum


class Phase(enum.IntEnum):
    """Of a request."""

    READING = 0
    HELD = 1
    CONNECTING = 2
    SENT = 3
    TUNNEL = 4
    OVER = 5


class ConnectionPhase(enum.IntEnum):
    """Of a connection. It never goes back."""

    OPEN = 0
    """One request after the other is read from it."""
    LAST = 1
    """Nothing is read behind the request under way."""
    LINGERING = 2
    """All is written; the client gets time to read it."""
    GONE = 3
    """Neither side uses it any more."""
