"""The word to stop a long step, cancelled by any thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kybernate.model.errors import Cancelled


class Cancellation:
    """Of one step, or of several that belong together. Thread-safe; once cancelled it stays."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = False
        self._listeners: list[Callable[[], None]] = []

    def cancel(self) -> None:
        """The step raises Cancelled soon, with nothing changed."""
        with self._lock:
            self._cancelled = True
            listeners = list(self._listeners)
        for listener in listeners:
            listener()

    def check(self, what: str) -> None:
        """Raises Cancelled once `cancel` was called."""
        if self._cancelled:
            raise Cancelled(f"{what}: cancelled")

    @contextmanager
    def forwarded_to(self, listener: Callable[[], None]) -> Iterator[None]:
        """For the block, `listener` is called by `cancel`, at once if that was called already."""
        with self._lock:
            self._listeners.append(listener)
            cancelled = self._cancelled
        if cancelled:
            listener()
        try:
            yield
        finally:
            with self._lock:
                self._listeners.remove(listener)
