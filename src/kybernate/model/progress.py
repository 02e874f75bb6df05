"""How far a long step of the store is: bytes, rate, time left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes of content, not of storage; rate in bytes a second."""

    what: str
    """`writing train-1 to nvme`"""
    done: int
    total: int | None
    """None where it isn't known ahead."""
    stored: int
    """Bytes really written or read: what was there already, and zeros, cost none."""
    seconds: float
    """Since the step began."""

    @property
    def rate(self) -> float:
        return self.done / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        if self.total is None or self.done <= 0:
            return None
        return max(0, self.total - self.done) / self.rate if self.rate else None


ProgressCallback = Callable[[Progress], None]
"""Called from several threads, never two at once: with the first bytes, at most ten times a second, and at the end."""
