"""What is done about an action that failed: an event, a pause before the next try, an error for requests if retrying can't help."""

from __future__ import annotations

import logging

from kybernate.agent.orders.ready import for_everybody
from kybernate.agent.records.events import Events
from kybernate.agent.records.ledger import Ledger
from kybernate.agent.serving.backoff import Backoff
from kybernate.agent.serving.controller_state import Outcomes
from kybernate.agent.serving.leases import Leases
from kybernate.agent.serving.vram_access import VramAccess
from kybernate.agent.workloads.starts import Starts
from kybernate.model.errors import Busy, KybernateError, NoRoom
from kybernate.model.types import CHUNK_BYTES, WorkloadName

log = logging.getLogger(__name__)

COME = "come"
LEAVE = "leave"
END = "end"
_PASSING = (Busy, NoRoom)
"""Failures that another moment may mend: requests stay held."""


class ActionFailures:
    """Use it in the loop's thread."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        events: Events,
        starts: Starts,
        backoff: Backoff,
        leases: Leases,
        outcomes: Outcomes,
        vram: VramAccess,
    ) -> None:
        self._ledger = ledger
        self._events = events
        self._starts = starts
        self._backoff = backoff
        self._leases = leases
        self._outcomes = outcomes
        self._vram = vram

    def report(self, name: WorkloadName, error: Exception, what: str) -> None:
        """`what`: COME, LEAVE or END."""
        if what == COME and self._starts.is_held(name):
            return  # a person stopped it meanwhile
        if isinstance(error, KybernateError):
            text, public = error.message, for_everybody(error)
        else:
            text, public = f"{type(error).__name__}: {error}", "an internal error, which is in the log"
            log.error("workload %s could not %s", name, what, exc_info=error)
        failure = self._backoff.add(name, text, public=public)
        self._events.record(
            f"{what}-failed", f"{public}; tried again in {failure.pause_s:g} s at the earliest", workload=name
        )
        if what != COME:
            return
        entry = self._ledger.get(name)
        if isinstance(error, NoRoom):
            # Its extents would have fit, but not what the driver keeps for it: the next time others make more room.
            numbers = self._vram.numbers()
            sizes = {uuid: min(number.unheld + 2 * CHUNK_BYTES, number.capacity) for uuid, number in numbers.items()}
            self._outcomes.set_shortage(name, sizes)
        if not isinstance(error, _PASSING) or entry is None or entry.ended:
            self._outcomes.set_refused(name, True)
            self._leases.refuse(name, message=f"{name} can't be had: {public}", retry_after_s=failure.pause_s)
