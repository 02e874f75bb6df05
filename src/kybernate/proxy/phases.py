"""How far a request has come."""

from __future__ import annotations

import enum


class Phase(enum.IntEnum):
    READING = 0
    HELD = 1
    CONNECTING = 2
    SENT = 3
    TUNNEL = 4
    OVER = 5
