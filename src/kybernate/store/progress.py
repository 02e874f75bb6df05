"""Counting what a long step has done, and the word to stop it."""

from __future__ import annotations

import threading
import time

from kybernate.model.errors import Cancelled
from kybernate.model.progress import Progress, ProgressCallback

_SECONDS_BETWEEN = 0.1


class Meter:
    """Counts for one step. Thread-safe."""

    def __init__(self, what: str, total: int | None, tell: ProgressCallback | None) -> None:
        self._what = what
        self._total = total
        self._tell = tell
        self._began = time.monotonic()
        self._last_told_at = float("-inf")
        self._lock = threading.Lock()
        self._telling = threading.Lock()
        self.done = 0
        self.stored = 0

    def add(self, done: int, stored: int = 0) -> None:
        with self._lock:
            self.done += done
            self.stored += stored
            now = time.monotonic()
            if self._tell is None or now - self._last_told_at < _SECONDS_BETWEEN:
                return
            self._last_told_at = now
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
