"""What a person's orders mean for what is started and resumed by itself."""

from __future__ import annotations

from collections.abc import Callable

from kybernate.agent.records.ledger import Entry
from kybernate.agent.serving.backoff import Backoff
from kybernate.agent.serving.configuration import CurrentConfiguration
from kybernate.agent.serving.controller_state import ControllerState
from kybernate.agent.serving.worker_load import WorkerLoads
from kybernate.agent.serving.workload_stats import WorkloadStats
from kybernate.agent.workloads.starts import Starts
from kybernate.model.types import EndedBy, WorkloadName, WorkloadState
from kybernate.settings.specs import Kind


class UserOrders:
    """Use it in the loop's thread."""

    def __init__(
        self,
        *,
        configuration: CurrentConfiguration,
        starts: Starts,
        state: ControllerState,
        backoff: Backoff,
        stats: WorkloadStats,
        loads: WorkerLoads,
        clock: Callable[[], float],
        wake: Callable[[], None],
    ) -> None:
        self._configuration = configuration
        self._starts = starts
        self._requested = state.requested
        self._outcomes = state.outcomes
        self._backoff = backoff
        self._stats = stats
        self._loads = loads
        self._clock = clock
        self._wake = wake

    def on_requested(self, name: WorkloadName) -> None:
        """A person ordered its resume, or its start: it shall run until somebody pauses it."""
        self._starts.allow(name)
        self._requested.set_stopped(name, None)
        self._requested.add(name)
        self._backoff.clear(name)
        if self._stats.of(name).done:
            self._stats.update(name, done=False)
        self._wake()

    def on_stop_ordered(self, name: WorkloadName) -> None:
        """From now on it isn't started by itself."""
        self._requested.discard(name)
        served = self._configuration.served.get(name)
        if served is None:
            return
        self._starts.hold(name)
        self._requested.set_stopped(name, None)
        self._outcomes.set_been_up(name, True)
        self._backoff.clear(name)
        if served.kind is Kind.JOB:
            self._stats.update(name, done=True, fingerprint=served.fingerprint)

    def on_stopped(self, name: WorkloadName) -> None:
        """That is done: a model's next request starts it again."""
        served = self._configuration.served.get(name)
        if served is not None and served.kind is Kind.MODEL and self._starts.is_held(name):
            self._requested.set_stopped(name, self._loads.demand(name, self._clock()).begun)
        self._wake()

    def on_configured(self) -> None:
        """Whoever changed the file may have mended it, and a job with another program is another job."""
        self._backoff.clear_all()
        for name, served in self._configuration.served.items():
            if served.kind is Kind.JOB and self._stats.of(name).fingerprint != served.fingerprint:
                self._starts.allow(name)
        self._wake()

    def on_changed(self, old: Entry | None, new: Entry) -> None:
        """What was ordered to run has been paused, or has ended: the order is over."""
        ran = old is not None and old.state in (WorkloadState.RUNNING, WorkloadState.PAUSING)
        if new.ended_by is EndedBy.ORDER or (ran and new.state in (WorkloadState.PAUSED, WorkloadState.EXITED)):
            self._requested.discard(new.name)

    def poll(self, now: float) -> None:
        """Models that a person stopped, and that somebody asks since, start again."""
        for name, before in self._requested.stopped():
            demand = self._loads.demand(name, now)
            if demand.waiting and demand.begun > before:
                self._requested.set_stopped(name, None)
                self._starts.allow(name)
