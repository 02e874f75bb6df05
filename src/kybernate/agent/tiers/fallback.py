"""What is left when RAM is lost: a workload that was brought back from the store has its copy there until it runs."""

from __future__ import annotations

import logging

from kybernate.agent.records.events import Events
from kybernate.agent.records.ledger import Ledger
from kybernate.agent.tiers.parking import end_processes
from kybernate.agent.tiers.stores import Stores
from kybernate.agent.workloads.runtime import GpuRuntime
from kybernate.agent.workloads.threads import in_thread
from kybernate.agent.workloads.workloads import Workloads
from kybernate.model.errors import KybernateError, NotFound
from kybernate.model.types import Depth, TierName, WorkloadName, WorkloadState

log = logging.getLogger(__name__)


class StoredFallback:
    """Use it in the loop's thread, in the workload's owner task."""

    def __init__(self, *, ledger: Ledger, events: Events, stores: Stores, workloads: Workloads) -> None:
        self._ledger = ledger
        self._events = events
        self._stores = stores
        self._workloads = workloads

    async def find(self, gpu: GpuRuntime, name: WorkloadName, *, sure: bool = True) -> TierName | None:
        """What a workload had in RAM is gone: if there is an equal copy in the store, that is the workload now.

        Args:
            sure: not where a tier doesn't answer that may have it.

        Returns where it lies; None: there is none, or nobody can tell.
        """
        entry = self._ledger.entry(name)
        if entry.snapshot is None or entry.tier is not TierName.RAM:
            return None
        snapshot = entry.snapshot
        try:
            tier = (await in_thread(f"find {name}", lambda: self._stores.find(snapshot, one=True)))[0]
        except KybernateError as e:
            log.warning("no copy of workload %s can be found: %s", name, e)
            if sure or isinstance(e, NotFound):
                return None
            tier = TierName.NVME  # all are looked into when it is asked for
        tree = self._workloads.tree(name)
        self._ledger.update(name, tier=tier, pids=(), depth=Depth.ZERO)
        await self._ledger.flush()
        await in_thread(f"end {name}", lambda: end_processes(gpu, self._workloads, name, tree))
        return tier

    async def ended_in_ram(self, gpu: GpuRuntime | None, name: WorkloadName) -> bool:
        """The processes of a workload that is paused in RAM have ended, by no order. Whether a copy takes their place: one
        that was brought back from the store has it until it runs."""
        if gpu is None or self._ledger.entry(name).state is not WorkloadState.PAUSED:
            return False
        tier = await self.find(gpu, name, sure=False)
        if tier is None:
            return False
        why = "its processes ended while it was paused; its copy in the store takes their place"
        self._ledger.update(name, reason=why)
        self._events.record("fell-back", why, workload=name, data={"tier": tier})
        return True
