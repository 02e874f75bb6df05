"""How far a long step is: bytes, rate, time left; and the word to stop it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from kybernate.store.errors import Cancelled

_SECONDS_BETWEEN = 0.1


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


class Meter:
    """Counts for one step. Thread-safe."""

    def __init__(self, what: str, total: int | None, tell: ProgressCallback | None) -> None:
        self._what = what
        self._total = total
        self._tell = tell
        self._began = time.monotonic()
        self._told = float("-inf")
        self._lock = threading.Lock()
        self._telling = threading.Lock()
        self.done = 0
        self.stored = 0

    def add(self, done: int, stored: int = 0) -> None:
        with self._lock:
            self.done += done
            self.stored += stored
            now = time.monotonic()
            if self._tell is None or now - self._told < _SECONDS_BETWEEN:
                return
            self._told = now
        self.tell()

    def expect(self, total: int) -> None:
        """It is known by now."""
        with self._lock:
            self._total = total

    def tell(self) -> None:
        """Say where it stands now."""
        if self._tell is None:
            return
        with self._telling:
            self._tell(Progress(self._what, self.done, self._total, self.stored, time.monotonic() - self._began))


class Cancel:
    """Shared between who may stop a step and who carries it out."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def check(self, what: str) -> None:
        """Raises Cancelled once `set` was called."""
        if self._event.is_set():
            raise Cancelled(f"{what}: cancelled")

    def wait(self, seconds: float) -> bool:
        """Wait that long, or until `set`; whether it was set."""
        return self._event.wait(seconds)
