"""A workload made of an image: content and processes restored, paused, under a name of its own."""

from __future__ import annotations

from collections.abc import Mapping

from kybernate.agent.records.events import Events
from kybernate.agent.records.jobs import Jobs
from kybernate.agent.records.ledger import ARBITER, Changes, Ledger
from kybernate.agent.records.lifecycle import Event
from kybernate.agent.tiers.pool_eviction import PoolEviction
from kybernate.agent.tiers.stores import Stores
from kybernate.agent.tiers.unparking import launched_of
from kybernate.agent.workloads.launching import Launcher
from kybernate.agent.workloads.runtime import GpuRuntime
from kybernate.agent.workloads.starts import Starts
from kybernate.agent.workloads.threads import in_thread
from kybernate.agent.workloads.workloads import Workloads
from kybernate.model.errors import Conflict, KybernateError
from kybernate.model.quantities import together
from kybernate.model.types import Depth, GpuUuid, TierName, WorkloadName, WorkloadState
from kybernate.process.tree import Tree


class ImageRestore:
    """Use it in the loop's thread."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        events: Events,
        jobs: Jobs,
        starts: Starts,
        stores: Stores,
        workloads: Workloads,
        launcher: Launcher,
        pool_eviction: PoolEviction,
    ) -> None:
        self._ledger = ledger
        self._events = events
        self._jobs = jobs
        self._starts = starts
        self._stores = stores
        self._workloads = workloads
        self._launcher = launcher
        self._pool_eviction = pool_eviction

    async def refusals(self, gpu: GpuRuntime, image: str, tier: TierName) -> list[str]:
        """Why it can't run on this host; empty where it can."""
        return await in_thread(f"look at {image}", lambda: gpu.engine.refusals(self._stores.space(tier), image))

    async def restore(
        self,
        gpu: GpuRuntime,
        name: WorkloadName,
        image: str,
        tier: TierName,
        *,
        unmanaged: Mapping[GpuUuid, int],
        since: float,
    ) -> None:
        """In the clone's owner task. It is paused in RAM then.

        Args:
            unmanaged: what of its VRAM the driver itself brings back, in bytes.
            since: when it was ordered, by its entry: another one may have taken its name.

        Raises what restoring does; it has ended then.
        """
        entry = self._ledger.entry(name)
        if (entry.state, entry.image, entry.since) != (WorkloadState.STARTING, image, since):
            raise Conflict(f"workload {name} was stopped before it had come")
        try:
            self._starts.refuse()
            with self._jobs.begin("clone", name) as job:

                def revive() -> Tree:
                    self._launcher.clear(name)
                    return gpu.engine.revive(
                        self._stores.space(tier),
                        image,
                        name,
                        run_directory=self._workloads.run_directory(name),
                        progress=job.tell,
                        cancel=job.stop,
                        keep_staged=True,
                    )

                tree = await self._pool_eviction.with_room(name, revive)
        except Exception as e:
            reason = e.message if isinstance(e, KybernateError) else repr(e)
            self._ledger.apply(name, Event.START_FAILED, reason=f"could not be cloned: {reason}")
            self._events.record("start-failed", f"not cloned from {image}: {reason}", workload=name)
            raise
        launched = await in_thread(f"look at {name}", lambda: launched_of(tree))
        self._workloads.adopt(name, tree)
        changes: Changes = {
            "reason": f"cloned from {image}",
            "depth": Depth.ZERO,
            "paused_by": ARBITER,
            "evicted": together(gpu.engine.away_bytes(name), unmanaged),
            "unmanaged": unmanaged,
            "pids": tuple(tree.pids()),
        }
        if launched is not None:
            changes |= {"argv": launched.argv, "directory": launched.directory}
        self._ledger.apply(name, Event.FOUND_PAUSED, **changes)
        self._events.record("cloned", f"from {image} in {tier}", workload=name, data={"image": image, "tier": tier})
