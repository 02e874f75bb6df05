"""The pause of a workload, in its owner task: requests end, the engine pauses, the ledger follows."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable

from kybernate.agent.records.ledger import ARBITER, USER, Entry, Ledger, refuse_ended
from kybernate.agent.records.lifecycle import Event
from kybernate.agent.records.views import switch_view
from kybernate.agent.switching.failure_recovery import FailureRecovery
from kybernate.agent.switching.gate import RequestGate
from kybernate.agent.switching.surroundings import PoolSpace
from kybernate.agent.workloads.operations import RunningOrder
from kybernate.agent.workloads.orders import PauseOrder
from kybernate.agent.workloads.runtime import GpuRuntime
from kybernate.agent.workloads.targets import look_at
from kybernate.agent.workloads.workloads import Workloads
from kybernate.model.api import SwitchView
from kybernate.model.errors import Busy
from kybernate.model.quantities import together
from kybernate.model.types import Backend, Depth, SwitchReport, WorkloadName, WorkloadState

_LEAST_DRAIN_S = 1.0
"""For the GPU, where requests in flight took nearly all of an order's time: kernels end within milliseconds."""


class Pausing:
    """Use it in the loop's thread."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        clock: Callable[[], float],
        workloads: Workloads,
        pool_space: PoolSpace,
        recovery: FailureRecovery,
        find_unmanaged: Callable[[], Awaitable[None]],
        gate: Callable[[], RequestGate],
    ) -> None:
        """
        Args:
            find_unmanaged: brings the ledger up to date of VRAM that processes hold without our library.
            gate: who lets requests through to workloads; asked at each use, since it is made after this.
        """
        self._ledger = ledger
        self._clock = clock
        self._workloads = workloads
        self._pool_space = pool_space
        self._recovery = recovery
        self._find_unmanaged = find_unmanaged
        self._gate = gate

    async def pause(
        self,
        gpu: GpuRuntime,
        name: WorkloadName,
        order: RunningOrder[PauseOrder],
    ) -> SwitchView:
        """`order`: as it stands at each step."""
        depth, timeout_s = order.now.depth, order.now.timeout_s
        ledger = self._ledger
        entry = ledger.entry(name)
        refuse_ended(entry, "paused")
        if gpu.engine.unfinished(name):
            entry = await self._recovery.settle(gpu, entry)
        deeper = entry.state is WorkloadState.PAUSED
        if deeper and (entry.depth is depth or entry.depth is Depth.ZERO):
            return self._already_paused(entry, order.now.by)
        began = self._clock()
        if order.now.drain:
            closing = self._gate().close(name, timeout_s=timeout_s, by_arbiter=order.now.by == ARBITER)
            try:
                await order.waiting(closing)
            except Busy:
                self._gate().on_pause_aborted(name)
                raise
        else:
            self._gate().hold(name)
        timeout_s = max(timeout_s - (self._clock() - began), min(timeout_s, _LEAST_DRAIN_S))
        try:
            target = await look_at(entry, self._workloads.tree(entry.name))
            if not entry.external and (entry.unmanaged or not target.processes):
                await self._find_unmanaged()  # what it needs back
                entry = ledger.entry(name)
                refuse_ended(entry, "paused")
                # No gates to wait at, or not yet: only standing still keeps it from computing, and only the driver frees its VRAM.
                depth = Depth.ZERO
            free_before = {g.uuid: g.free_bytes() for g in gpu.gpus} if entry.backend is Backend.DRIVER else {}
            ledger.apply(name, Event.PAUSE, reason=order.now.why.replace("paused", "being paused", 1))
        except BaseException:
            self._gate().on_pause_aborted(name)
            raise
        try:
            report = await self._pool_space.with_room(
                name,
                lambda: gpu.engine.pause(target, depth=depth, timeout_s=timeout_s, freed=order.now.freed),
                requester=order.now.requester,
            )
        except Exception as e:
            undone = Event.DEEPEN_UNDONE if deeper else Event.PAUSE_UNDONE
            await self._recovery.failed(gpu, name, target, e, operation="pause", undone=undone)
            if ledger.entry(name).state is WorkloadState.RUNNING:
                self._gate().on_pause_aborted(name)
            raise
        # What is asked for at the resume is what left, which may be less than it held: it gives back what it can spare first.
        unmanaged = dict(entry.unmanaged)
        evicted = together(entry.evicted if deeper else gpu.engine.away_bytes(name), unmanaged)
        if deeper and entry.last_pause is not None:
            # The content had gone before; the host copy was right and is all the workload has.
            before = entry.last_pause
            content = before.bytes_total - before.bytes_zero
            report = dataclasses.replace(
                report, bytes_total=before.bytes_total, bytes_clean=content, bytes_zero=before.bytes_zero
            )
        if free_before:
            # The driver doesn't say what it moved; what became free is near enough to ask for it back later.
            gained = {g.uuid: g.free_bytes() - free_before[g.uuid] for g in gpu.gpus}
            evicted = unmanaged = {uuid: size for uuid, size in gained.items() if size > 0}
        ledger.apply(
            name,
            Event.PAUSED,
            reason=order.now.why,
            depth=depth,
            paused_by=order.now.by,
            evicted=evicted,
            unmanaged=unmanaged,
            pids=tuple(target.tree.pids()),
            last_pause=report,
        )
        self._recovery.done(report, order.now.why)
        return switch_view(report)

    def _already_paused(self, entry: Entry, by: str) -> SwitchView:
        assert entry.depth is not None
        note = f"was paused already ({entry.reason})"
        if by == USER and entry.paused_by == ARBITER:
            self._ledger.update(entry.name, paused_by=USER, reason="paused by order")
            note += "; stays so until it is resumed"
        report = entry.last_pause or SwitchReport(
            workload=entry.name, operation="pause", depth=entry.depth, backend=entry.backend, seconds=0.0
        )
        return switch_view(report, already=True, note=note)
