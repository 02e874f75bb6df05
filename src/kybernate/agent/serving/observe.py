"""What is learnt from what happens: how long switches take, what workloads need, how jobs end, who has the GPU for how long."""

from __future__ import annotations

from kybernate.agent.gear import Gear
from kybernate.agent.records.ledger import Entry
from kybernate.agent.serving.backoff import Failures
from kybernate.agent.serving.collect_state import Looking
from kybernate.agent.serving.controller_state import Notes
from kybernate.agent.serving.gpu_usage import Accounts, Holding
from kybernate.agent.serving.worker_load import Loads
from kybernate.agent.serving.workload_stats import Memories
from kybernate.model.types import Backend, EndedBy, TierName, WorkloadName, WorkloadState
from kybernate.policy.costs import Direction
from kybernate.policy.node_state import Class
from kybernate.settings import Restart
from kybernate.settings.specs import Kind, Served


class Learning:
    """Use it in the loop's thread."""

    def __init__(
        self,
        *,
        gear: Gear,
        loads: Loads,
        memories: Memories,
        accounts: Accounts,
        notes: Notes,
        failures: Failures,
        looking: Looking,
    ) -> None:
        self._gear = gear
        self._loads = loads
        self._memories = memories
        self._accounts = accounts
        self._notes = notes
        self._failures = failures
        self._looking = looking

    def take_over(self) -> None:
        """After the recovery: what lives was up before, and a job that ended while no agent ran has ended."""
        for name, served in self._notes.served.items():
            entry = self._gear.ledger.get(name)
            if entry is None:
                continue
            if not entry.ended:
                self._notes.been_up.add(name)
            elif served.kind is Kind.JOB and (memory := self._memories.of(name)).fingerprint and not memory.done:
                self._job_ended(served, entry, by_order=entry.ended_by is EndedBy.ORDER)

    def up(self, name: WorkloadName) -> None:
        """It may be asked, or computes."""
        self._notes.been_up.add(name)
        if held := self._looking.resident(name):
            self._memories.update(name, needs=dict(held))

    def count(self, now: float) -> None:
        holdings = []
        for entry in self._gear.ledger.entries().values():
            if entry.state is not WorkloadState.RUNNING or entry.external:
                continue
            served = self._notes.served.get(entry.name)
            klass = Class.BATCH if served is None else served.klass
            is_model = served is not None and served.kind is Kind.MODEL
            busy = not is_model or self._loads.of(entry.name, now).in_flight > 0
            size = sum(self._looking.resident(entry.name).values())
            if not size and entry.backend is Backend.BROKER:
                continue  # it could compute, and has nothing to compute on
            holdings.append(Holding(name=entry.name, klass=klass, resident=size, busy=busy))
        self._accounts.tick(holdings, now)

    def changed(self, old: Entry | None, new: Entry) -> None:
        """From a switch that has just been reported, and from an end."""
        name = new.name
        if new.ended:
            self._notes.short.pop(name, None)
        if old is not None and (old.state, new.state) == (WorkloadState.PAUSING, WorkloadState.PAUSED):
            self._failures.forgive(name)
        before = None if old is None else old.last_pause
        if new.last_pause is not None and new.last_pause is not before:
            self._memories.learn(name, self._memories.costs.reported(new.last_pause, source=TierName.RAM))
            if new.evicted:
                self._memories.update(name, needs=dict(new.evicted))
        served = self._notes.served.get(name)
        if served is None or old is None or old.ended or not new.ended or name in self._notes.replacing:
            return
        if served.kind is Kind.JOB:
            self._job_ended(served, new, by_order=new.ended_by is EndedBy.ORDER)
        elif new.ended_by not in (EndedBy.ORDER, EndedBy.AGENT) and name not in self._notes.starting:
            self._failures.back_off(name, f"ended with status {new.exit_status}")

    def _job_ended(self, served: Served, entry: Entry, *, by_order: bool) -> None:
        """Whether it is started again, and when."""
        over = entry.exit_status == 0 and served.restart is not Restart.ALWAYS
        done = over or by_order or served.restart is Restart.NEVER
        self._memories.update(served.name, done=done)
        if not done:
            self._failures.back_off(served.name, f"ended with status {entry.exit_status}")

    def came(self, name: WorkloadName, place: TierName | None, seconds: float) -> None:
        """It came from there, which took so long. None: it was started, or cloned."""
        size = sum(self._looking.resident(name).values())
        costs = self._memories.costs.observed(name, Direction.COME, place, seconds=seconds, size=size)
        self._memories.learn(name, costs)
