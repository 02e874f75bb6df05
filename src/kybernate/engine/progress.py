"""How far a pause or a resume has come, in bytes: told by the threads that move them, read by whoever asks."""

from __future__ import annotations

import threading
import time


class Progress:
    """Of one switch. Thread-safe."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._done = 0

    def add(self, size_bytes: int) -> None:
        with self._lock:
            self._done = min(self.total_bytes, self._done + size_bytes)

    @property
    def done_bytes(self) -> int:
        return self._done

    @property
    def bytes_per_s(self) -> float:
        """Since the beginning of the switch, with all that came before the first byte."""
        return self._done / max(time.monotonic() - self._began, 1e-6)

    @property
    def seconds_left(self) -> float | None:
        """None while nothing has been moved."""
        rate = self.bytes_per_s
        return (self.total_bytes - self._done) / rate if rate else None
