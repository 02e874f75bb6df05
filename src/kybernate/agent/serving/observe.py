"""What follows from what is seen: how long switches take, what workloads need, how jobs end, who has the GPU for how long."""

from __future__ import annotations

from kybernate.agent.records.ledger import Entry, Ledger
from kybernate.agent.serving.backoff import Backoff
from kybernate.agent.serving.configuration import CurrentConfiguration
from kybernate.agent.serving.controller_state import ControllerState
from kybernate.agent.serving.gpu_usage import GpuUsage, Resident
from kybernate.agent.serving.vram_access import VramAccess
from kybernate.agent.serving.worker_load import WorkerLoads
from kybernate.agent.serving.workload_stats import WorkloadStats
from kybernate.model.types import Backend, EndedBy, TierName, WorkloadName, WorkloadState
from kybernate.policy.costs import Direction, Source
from kybernate.policy.node_state import Class
from kybernate.settings import Restart
from kybernate.settings.specs import Kind, Served


class Observations:
    """Use it in the loop's thread."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        configuration: CurrentConfiguration,
        loads: WorkerLoads,
        stats: WorkloadStats,
        usage: GpuUsage,
        vram: VramAccess,
        state: ControllerState,
        backoff: Backoff,
    ) -> None:
        self._ledger = ledger
        self._configuration = configuration
        self._loads = loads
        self._stats = stats
        self._usage = usage
        self._vram = vram
        self._state = state
        self._backoff = backoff

    def take_over(self) -> None:
        """After the recovery: what lives was up before, and a job that ended while no agent ran has ended."""
        for name, served in self._configuration.served.items():
            entry = self._ledger.get(name)
            if entry is None:
                continue
            if not entry.ended:
                self._state.outcomes.set_been_up(name, True)
            elif served.kind is Kind.JOB and (stats := self._stats.of(name)).fingerprint and not stats.done:
                self._on_job_ended(served, entry, by_order=entry.ended_by is EndedBy.ORDER)

    def on_ready(self, name: WorkloadName) -> None:
        """It may be asked, or computes."""
        self._state.outcomes.set_been_up(name, True)
        if held := self._vram.held_by(name):
            self._stats.update(name, needs=dict(held))

    def poll(self, now: float) -> None:
        """Count who has the GPU."""
        residents = []
        for entry in self._ledger.entries().values():
            if entry.state is not WorkloadState.RUNNING or entry.external:
                continue
            served = self._configuration.served.get(entry.name)
            klass = Class.BATCH if served is None else served.klass
            is_model = served is not None and served.kind is Kind.MODEL
            busy = not is_model or self._loads.demand(entry.name, now).in_flight > 0
            size = sum(self._vram.held_by(entry.name).values())
            if not size and entry.backend is Backend.BROKER:
                continue  # it could compute, and has nothing to compute on
            residents.append(Resident(name=entry.name, klass=klass, bytes=size, busy=busy))
        self._usage.tick(residents, now)

    def write(self, now: float) -> None:
        """What was counted, before the agent ends."""
        self._usage.write(now)

    def on_changed(self, old: Entry | None, new: Entry) -> None:
        """From a switch that has just been reported, and from an end."""
        name = new.name
        if new.ended:
            self._state.outcomes.set_shortage(name, None)
        if old is not None and (old.state, new.state) == (WorkloadState.PAUSING, WorkloadState.PAUSED):
            self._backoff.clear(name)
        before = None if old is None else old.last_pause
        if new.last_pause is not None and new.last_pause is not before:
            self._stats.record_costs(name, self._stats.costs.reported(new.last_pause, source=TierName.RAM))
            if new.evicted:
                self._stats.update(name, needs=dict(new.evicted))
        served, actions = self._configuration.served.get(name), self._state.actions
        if served is None or old is None or old.ended or not new.ended or actions.is_replacing(name):
            return
        if served.kind is Kind.JOB:
            self._on_job_ended(served, new, by_order=new.ended_by is EndedBy.ORDER)
        elif new.ended_by not in (EndedBy.ORDER, EndedBy.AGENT) and not actions.is_starting(name):
            self._backoff.add(name, f"ended with status {new.exit_status}")

    def _on_job_ended(self, served: Served, entry: Entry, *, by_order: bool) -> None:
        """Whether it is started again, and when."""
        over = entry.exit_status == 0 and served.restart is not Restart.ALWAYS
        done = over or by_order or served.restart is Restart.NEVER
        self._stats.update(served.name, done=done)
        if not done:
            self._backoff.add(served.name, f"ended with status {entry.exit_status}")

    def on_replaced(self, name: WorkloadName) -> None:
        """It has ended, so that it begins with what the file says now."""
        self._stats.update(name, fingerprint="", done=False)
        self._state.outcomes.set_been_up(name, False)

    def on_resumed(self, name: WorkloadName, source: Source, seconds: float) -> None:
        """It came from there, which took so long. None: it was started, or cloned."""
        size = sum(self._vram.held_by(name).values())
        costs = self._stats.costs.observed(name, Direction.COME, source, seconds=seconds, size=size)
        self._stats.record_costs(name, costs)
