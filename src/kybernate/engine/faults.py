"""Named places in the engine where a test can kill or fail the agent. In production every one is a no-op.

KYBERNATE_FAULT=STEP:kill ends the agent by SIGKILL when it reaches STEP, STEP:error raises there, STEP:once only the first time.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping

from kybernate.model.errors import BadInput, KybernateError

VARIABLE = "KYBERNATE_FAULT"

PAUSE_STEPS = (
    "pause.connected",
    "pause.quiet",
    "pause.planned",
    "pause.recorded",
    "pause.released",
    "pause.locked",
    "pause.checkpointed",
    "pause.marked",
    "pause.discarding",
    "pause.copied",
    "pause.discarded",
    "pause.frozen",
)
RESUME_STEPS = (
    "resume.thawed",
    "resume.created",
    "resume.filled",
    "resume.restored",
    "resume.unlocked",
    "resume.checked",
    "resume.mapped",
    "resume.opened",
)
STEPS = PAUSE_STEPS + RESUME_STEPS
TIER_STEPS = (
    "capture.dumped",
    "capture.written",
    "capture.committed",
    "stage.read",
    "revive.restored",
    "revive.saved",
)
"""Of workloads that go to a store and come back from one."""


class InjectedFault(KybernateError):
    """Raised on request of a test."""


class Faults:
    """Where to fail, and how."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """Read the request.

        Raises:
            BadInput: the variable names no step or no known way to fail.
        """
        self._step, _, self._way = environment.get(VARIABLE, "").partition(":")
        if self._step and (self._step not in STEPS + TIER_STEPS or self._way not in ("kill", "error", "once")):
            raise BadInput(
                f"{VARIABLE}={self._step}:{self._way} is not STEP:kill, STEP:error or STEP:once",
                hint=f"steps: {', '.join(STEPS + TIER_STEPS)}",
            )

    def at(self, step: str) -> None:
        """Pass a step. Raises InjectedFault when a test asked for it."""
        if step != self._step:
            return
        if self._way == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._way == "once":
            self._step = ""
        raise InjectedFault(f"injected fault at {step}")
