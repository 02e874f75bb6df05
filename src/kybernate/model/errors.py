"""Errors a person can act on.

Every message says what failed, on which object, and what to do. `exit_status` is the command line's
exit status and `http_status` the API's, so that one error means the same at every edge.
"""

from __future__ import annotations

from typing import Self


class KybernateError(Exception):
    """Root of all errors the product raises on purpose."""

    exit_status = 1
    http_status = 500
    code = "failed"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def name_workload(self, name: str) -> None:
        """Say in the message which workload it is about, if it doesn't yet."""
        if name not in self.message:
            self.message = f"workload {name}: {self.message}"

    def reported_as(self, *, code: str | None = None, exit_status: int | None = None) -> Self:
        """The same error, as another process has reported it: with its code and exit status."""
        if code is not None:
            self.code = code
        if exit_status is not None:
            self.exit_status = exit_status
        return self

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class BadInput(KybernateError):
    """The request makes no sense; nothing was changed."""

    exit_status = 2
    http_status = 400
    code = "bad_input"


class NotFound(BadInput):
    """No object of that name."""

    http_status = 404
    code = "not_found"


class Conflict(BadInput):
    """The object exists, but not in a state that allows this."""

    http_status = 409
    code = "conflict"


class Busy(KybernateError):
    """Can't be done right now; the workload runs on unchanged, try again later."""

    exit_status = 3
    http_status = 423
    code = "busy"


class Unsupported(KybernateError):
    """Can't be done for this workload at all; found before anything was touched."""

    exit_status = 4
    http_status = 422
    code = "unsupported"


class NoRoom(KybernateError):
    """Host pool or VRAM too small; the message carries the numbers in bytes."""

    exit_status = 5
    http_status = 507
    code = "no_room"


class AgentAway(KybernateError):
    """No agent answers on the socket."""

    exit_status = 6
    http_status = 503
    code = "agent_away"


class WorkloadLost(KybernateError):
    """The workload's process ended or can't be brought back; the message says which step lost it."""

    exit_status = 7
    http_status = 410
    code = "lost"


class Cancelled(KybernateError):
    """Stopped because the caller said so; nothing of it is visible."""

    http_status = 499
    code = "cancelled"
