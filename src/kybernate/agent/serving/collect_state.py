"""The agent's state, gathered into the picture that a policy decides by: ledger, loads, memories, room, what is under way."""

from __future__ import annotations

import os
from collections.abc import Mapping

from kybernate.agent.gear import Gear
from kybernate.agent.serving.backoff import Failures
from kybernate.agent.serving.build_state import Seen, member_of
from kybernate.agent.serving.controller_state import Notes
from kybernate.agent.serving.leases import Gates
from kybernate.agent.serving.staging import Staging
from kybernate.agent.serving.worker_load import Loads
from kybernate.agent.serving.workload_stats import Memories
from kybernate.agent.workloads.workloads import Workloads
from kybernate.model.types import GpuUuid, WorkloadName
from kybernate.policy.node_state import Member, NodeState, Phase
from kybernate.settings.specs import Kind, Served
from kybernate.settings.vram_hints import VISIBLE, hinted


class Looking:
    """It changes nothing. Use it in the loop's thread."""

    def __init__(
        self,
        *,
        gear: Gear,
        workloads: Workloads,
        gates: Gates,
        loads: Loads,
        memories: Memories,
        staging: Staging,
        notes: Notes,
        failures: Failures,
    ) -> None:
        self._gear = gear
        self._workloads = workloads
        self._gates = gates
        self._loads = loads
        self._memories = memories
        self._staging = staging
        self._notes = notes
        self._failures = failures
        self._visible = os.environ.get(VISIBLE)

    def look(self) -> NodeState:
        now = self._gear.clock()
        gpu = self._gear.gpu
        numbers = {} if gpu is None else gpu.vram.numbers()
        members = {name: self._member(name, list(numbers), now) for name in self._names()}
        free: dict[GpuUuid, int] = {}
        for uuid, number in numbers.items():
            promised = dict(number.reserved)
            for member in members.values():
                if member.phase is Phase.COMING:
                    left = member.bytes.get(uuid, 0) - self.resident(member.name).get(uuid, 0)
                    promised[member.name] = max(promised.get(member.name, 0), left)
            free[uuid] = number.unheld - sum(promised.values())
        return NodeState(
            now=now,
            members=members,
            capacity={uuid: number.capacity for uuid, number in numbers.items()},
            free=free,
            prefetch_free=self._staging.free_bytes(),
            arrivals=self._loads.arrivals(),
        )

    def member(self, name: WorkloadName) -> Member:
        """One of the picture, as it is now."""
        gpu = self._gear.gpu
        return self._member(name, [] if gpu is None else list(gpu.vram.numbers()), self._gear.clock())

    def _names(self) -> list[WorkloadName]:
        alive = [entry.name for entry in self._gear.ledger.entries().values() if not entry.ended]
        return sorted({*self._notes.served, *alive})

    def _member(self, name: WorkloadName, gpus: list[GpuUuid], now: float) -> Member:
        return member_of(
            self.see(name, now),
            costs=self._memories.costs,
            gpus=gpus,
            auto_resume=self._gear.settings.arbiter.auto_resume,
            now=now,
        )

    def see(self, name: WorkloadName, now: float) -> Seen:
        gpu, entry, served = self._gear.gpu, self._gear.ledger.get(name), self._notes.served.get(name)
        is_model = served is not None and served.kind is Kind.MODEL
        return Seen(
            name=name,
            entry=entry,
            served=served,
            memory=self._memories.of(name),
            demand=self._loads.of(name, now),
            hinted=self._hinted(served),
            resident=self.resident(name),
            ready=not is_model or self._gates.is_open(name) or name not in self._notes.starting,
            worked_on=not self._workloads.idle(name),
            staged=self._staging.is_staged(entry),
            acting=self._notes.acting.get(name),
            asked_for=name in self._notes.asked_for,
            held=self._gear.starts.held(name),
            back_off_until=self._failures.until(name),
            refused_until=0.0 if gpu is None else gpu.admission.refused_until(name),
            short=self._notes.short.get(name, {}),
            said={} if gpu is None else gpu.vram.said(name),
            wanted={} if gpu is None else gpu.admission.wanted(name),
            never_ready=name not in self._notes.been_up,
        )

    def said(self) -> Mapping[WorkloadName, Mapping[GpuUuid, int]]:
        """What the configuration's jobs have for themselves while they run: they grow, and nobody asks them how far."""
        jobs = [served for served in self._notes.served.values() if served.kind is Kind.JOB]
        return {served.name: sizes for served in jobs if (sizes := self._hinted(served))}

    def _hinted(self, served: Served | None) -> Mapping[GpuUuid, int]:
        gpu = self._gear.gpu
        return {} if gpu is None or served is None else hinted(served, [each.uuid for each in gpu.gpus], self._visible)

    def resident(self, name: WorkloadName) -> Mapping[GpuUuid, int]:
        """What it holds now, in bytes."""
        gpu = self._gear.gpu
        return {} if gpu is None else gpu.vram.held_by(name)
