"""A stack of undos: each step that succeeded leaves what takes it back."""

from __future__ import annotations

import logging
from collections.abc import Callable

from kybernate.model.errors import KybernateError

log = logging.getLogger(__name__)

UNFORESEEN = "an undo failed in a way that nobody has foreseen"
"""Never to be seen in a log: every undo's errors are our own."""


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
            except KybernateError as e:  # the rest must still be undone
                log.warning("undo of %r failed: %s", what, e.message)
                failed.append(f"{what}: {e.message}")
            except Exception as e:  # likewise; a fault of ours
                log.exception("%s: %r", UNFORESEEN, what)
                failed.append(f"{what}: {e!r}")
        return failed

    def commit(self) -> None:
        """From here there is no way back; forget the undos."""
        self._undos.clear()
