"""Orders about processes that we did not start, by the driver's own checkpoint: none of our workloads but while they are paused."""

from __future__ import annotations

import contextlib

from kybernate.agent.orders.switching import Switching
from kybernate.agent.records.ledger import Ledger
from kybernate.agent.workloads.external import ExternalWatcher
from kybernate.agent.workloads.runtime import GpuRuntime, need_gpu
from kybernate.agent.workloads.targets import external_name
from kybernate.agent.workloads.workloads import Workloads
from kybernate.model.api import SwitchView
from kybernate.model.caller import Caller
from kybernate.model.errors import KybernateError, NotFound
from kybernate.model.types import Depth, WorkloadName

_RESUME_S = 30.0
"""So long a resume waits for room."""


class ExternalSwitching:
    """Use it in the loop's thread."""

    def __init__(
        self,
        *,
        gpu: GpuRuntime | None,
        ledger: Ledger,
        workloads: Workloads,
        external: ExternalWatcher,
        switching: Switching,
    ) -> None:
        self._gpu = gpu
        self._ledger = ledger
        self._workloads = workloads
        self._external = external
        self._switching = switching

    async def pause(self, pid: int, *, timeout_s: float, caller: Caller) -> SwitchView:
        """
        Raises:
            NotFound: no such process.
            Conflict: it is one of ours, or the agent itself.
            BadInput: it has no CUDA context.
        """
        need_gpu(self._gpu)
        name = external_name(pid)
        await self._external.adopt(pid, caller=caller)
        try:
            return await self._switching.pause(name, depth=Depth.ZERO, timeout_s=timeout_s)
        except KybernateError:
            await self._release(name)
            raise

    async def resume(self, pid: int, *, caller: Caller) -> SwitchView:
        """Raises NotFound when it was never paused here."""
        name = external_name(pid)
        caller.require_owner(self._ledger.entry(name).uid, f"process {pid}")
        view = await self._switching.resume(name, timeout_s=_RESUME_S)
        await self._release(name)
        return view

    async def _release(self, name: WorkloadName) -> None:
        with contextlib.suppress(NotFound):
            await self._workloads.submit(name, "let go", lambda: self._external.release(name))
