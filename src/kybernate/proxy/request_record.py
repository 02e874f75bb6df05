"""What is kept of one request, once it is over: for metrics, traces and the file of a recording."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Swap:
    """What a request waited for, by the agent's word."""

    opened_at: float
    """By the monotonic clock."""
    seconds: float
    victims: tuple[str, ...]


class RequestRecord(NamedTuple):
    """Times are those of the monotonic clock; 0: it came to nothing of the kind."""

    request_id: bytes
    model: str
    """Empty where none was found."""
    status: int
    """That it was answered with; 499: its client hung up."""
    tier: str
    """Where its model came from; `warm`: it was there."""
    arrived: float
    forwarded: float
    """When it was sent."""
    answered: float
    """When the first byte of the answer came."""
    ended: float
    waited: bool
    own_s: float
    """What it spent here without waiting for anybody: the client's body, its turn, the model."""
    bytes_in: int
    bytes_out: int
    swap: Swap | None
