"""The word to stop a long step, said by any thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kybernate.store import Cancelled


class Cancellation:
    """Of one step, or of several that belong together. Thread-safe; once said it stays."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._said = False
        self._listeners: list[Callable[[], None]] = []

    def cancel(self) -> None:
        """The step raises Cancelled soon, with nothing changed."""
        with self._lock:
            self._said = True
            listeners = list(self._listeners)
        for listener in listeners:
            listener()

    def check(self, what: str) -> None:
        """Raises Cancelled once it was said."""
        if self._said:
            raise Cancelled(f"{what}: cancelled")

    @contextmanager
    def told(self, listener: Callable[[], None]) -> Iterator[None]:
        """For the block, `listener` is called when it is said, at once if it was already."""
        with self._lock:
            self._listeners.append(listener)
            said = self._said
        if said:
            listener()
        try:
            yield
        finally:
            with self._lock:
                self._listeners.remove(listener)
