"""A stack of undos: each step that succeeded leaves what takes it back."""

from __future__ import annotations

import logging
from collections.abc import Callable

log = logging.getLogger(__name__)


class UndoStack:
    """Undos in order of their steps; `roll_back` runs them last to first.

    An undo that fails is logged and the others still run: the caller reports the first error, which is the cause.
    """

    def __init__(self) -> None:
        self._undos: list[tuple[str, Callable[[], None]]] = []

    def push(self, what: str, undo: Callable[[], None]) -> None:
        self._undos.append((what, undo))

    def roll_back(self) -> list[str]:
        """Take everything back. Returns what could not be, in words."""
        failed: list[str] = []
        while self._undos:
            what, undo = self._undos.pop()
            try:
                undo()
            except Exception as e:  # the rest must still be undone
                log.exception("undo of %s failed", what)
                failed.append(f"{what}: {e}")
        return failed

    def commit(self) -> None:
        """From here there is no way back; forget the undos."""
        self._undos.clear()
