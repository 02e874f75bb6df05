"""What follows from time, or from a changed file, and needs no policy: refusals taken back or said, programs that were changed
restarted, the idle sent to their lowest tier.
"""

from __future__ import annotations

from collections.abc import Callable

from kybernate.agent.gear import Gear
from kybernate.agent.records.ledger import USER, Entry
from kybernate.agent.serving.backoff import Failures
from kybernate.agent.serving.bringup import Coming
from kybernate.agent.serving.controller_state import Notes
from kybernate.agent.serving.effects import Effects
from kybernate.agent.serving.leases import Gates
from kybernate.agent.serving.worker_load import Loads
from kybernate.agent.serving.workload_stats import Memories
from kybernate.agent.workloads.workloads import Workloads
from kybernate.model.types import WorkloadName, WorkloadState
from kybernate.settings.specs import Kind, Served


class Housekeeping:
    """Use it in the loop's thread."""

    def __init__(
        self,
        *,
        gear: Gear,
        workloads: Workloads,
        coming: Coming,
        gates: Gates,
        loads: Loads,
        memories: Memories,
        notes: Notes,
        failures: Failures,
        effects: Effects,
    ) -> None:
        self._gear = gear
        self._workloads = workloads
        self._coming = coming
        self._gates = gates
        self._loads = loads
        self._memories = memories
        self._notes = notes
        self._failures = failures
        self._effects = effects
        self._by_order: set[WorkloadName] = set()
        """Refused since an order paused them."""
        self.pardoned: Callable[[WorkloadName], None] = lambda _: None
        """Tells the workers that it may be asked for again."""

    def look(self, now: float) -> None:
        self._let_start_again(now)
        for name, served in self._notes.served.items():
            entry = self._gear.ledger.get(name)
            if name in self._notes.refused and self._failures.until(name) <= now:
                self._notes.refused.discard(name)
                if self._gates.pardon(name):
                    self.pardoned(name)  # what comes from now on makes another attempt
            paused = entry is not None and entry.state is WorkloadState.PAUSED and entry.paused_by == USER
            if name in self._by_order and not paused:
                self._by_order.discard(name)
                if self._gates.pardon(name):
                    self.pardoned(name)  # also when it ended meanwhile: the next request starts it anew
            if entry is None or entry.ended or name in self._notes.acting:
                continue
            if served.kind is Kind.MODEL and paused:
                hint = f"{name} was paused by order; `kybernate resume {name}` lets it answer"
                self._by_order.add(name)
                self._gates.refuse(name, message=hint, retry_after_s=None)
            if (
                entry.state is WorkloadState.RUNNING
                and name not in self._notes.starting
                and self._memories.of(name).was_ready
            ):
                self._effects.let_run(name)
            if self._memories.of(name).fingerprint not in ("", served.fingerprint):
                self._restart_when_idle(served, entry, now)
            elif self._may_sink(served, entry, now):
                self._effects.sink(served)

    def _let_start_again(self, now: float) -> None:
        """Models that a person stopped, and that somebody asks since."""
        for name, before in list(self._notes.stopped.items()):
            demand = self._loads.of(name, now)
            if demand.waiting and demand.begun > before:
                del self._notes.stopped[name]
                self._gear.starts.allow(name)

    def _restart_when_idle(self, served: Served, entry: Entry, now: float) -> None:
        """Its program was changed in the file."""
        name = served.name
        demand = self._loads.of(name, now)
        settled = entry.state in (WorkloadState.RUNNING, WorkloadState.PAUSED) and self._workloads.idle(name)
        # One that lies elsewhere has nobody's requests; those that wait for it are for the new program.
        busy = entry.state is WorkloadState.RUNNING and (demand.in_flight or demand.waiting)
        if settled and not busy:
            self._effects.replace(served)

    def _may_sink(self, served: Served, entry: Entry, now: float) -> bool:
        gpu = self._gear.gpu
        if gpu is None or served.demote_after_s is None or now - entry.since < served.demote_after_s:
            return False
        waiting = self._loads.of(served.name, now).waiting
        return not waiting and self._failures.until(served.name) <= now and self._coming.may_sink(entry)
