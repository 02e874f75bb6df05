"""Workloads on their way below RAM: into the store, with their processes ended. unparking.py has the way back.

Each step runs in the workload's owner task. Its ledger entry stays `paused` through all of it; `tier` says where it lies, and
is on disk before anything is given up that it no longer speaks of:

    park     ledger names the snapshot to be -> engine writes it -> ledger: tier below RAM -> processes end, pool is freed
    unpark   engine brings content and processes back, paused -> ledger: tier RAM -> an ordinary resume -> snapshot is deleted

So whenever the agent dies, a new one knows which of the two is the workload: in RAM, its processes; below, its snapshot.
"""

from __future__ import annotations

import logging
import secrets
import shutil

from kybernate.agent.records.events import Events
from kybernate.agent.records.ledger import Entry, Ledger
from kybernate.agent.tiers.capture import DumpOptions, SnapshotCapture
from kybernate.agent.tiers.stale_snapshots import with_name
from kybernate.agent.tiers.stores import Stores
from kybernate.agent.workloads.runtime import GpuRuntime
from kybernate.agent.workloads.targets import look_at
from kybernate.agent.workloads.threads import in_thread
from kybernate.agent.workloads.workloads import Workloads
from kybernate.engine.capture import StoredReport
from kybernate.engine.stored import Kind
from kybernate.model.errors import Conflict, KybernateError
from kybernate.model.quantities import format_seconds, format_size
from kybernate.model.types import Depth, TierName, WorkloadName, WorkloadState
from kybernate.process.specs import LAYERS
from kybernate.process.tree import Tree

log = logging.getLogger(__name__)


_AS_SET = DumpOptions()


class Parking:
    """See the module. Use it in the loop's thread."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        events: Events,
        stores: Stores,
        workloads: Workloads,
        capture: SnapshotCapture,
    ) -> None:
        self._ledger = ledger
        self._events = events
        self._stores = stores
        self._workloads = workloads
        self._capture = capture

    async def prepare(self, entry: Entry, tier: TierName, options: DumpOptions) -> None:
        """What hinders a park is found before the workload is paused, as far as it can be.

        Raises:
            Unsupported: it can't be dumped. What opening the tier does.
        """
        self._capture.refuse_early(entry)
        await in_thread(f"open {tier}", lambda: self._stores.space(tier))
        await self._capture.refuse_undumpable(entry, options)

    async def park(
        self,
        gpu: GpuRuntime,
        name: WorkloadName,
        tier: TierName,
        *,
        options: DumpOptions = _AS_SET,
        by_itself: bool = False,
        why: str = "parked by order",
    ) -> StoredReport:
        """Write a workload that is paused in RAM into the store and end its processes. In its owner task.

        Args:
            by_itself: no order of a person: an order may stop it.

        Raises:
            Unsupported: it can't be dumped. NoRoom: the tier is full. TierAway and others of the store, Cancelled.
            It is paused in RAM as before then.
        """
        ledger = self._ledger
        entry = ledger.entry(name)
        self._capture.refuse_early(entry)
        if entry.state is not WorkloadState.PAUSED or entry.depth is not Depth.ZERO or gpu.engine.unfinished(name):
            raise Conflict(f"workload {name} isn't paused to depth zero", hint=f"`kybernate pause {name}` first")
        tree = self._workloads.tree(name)
        target = await look_at(entry, tree)
        await in_thread(f"open {tier}", lambda: self._stores.space(tier))
        snapshot = f"{Kind.PARKED}.{name}.{secrets.token_hex(4)}"
        ledger.update(name, snapshot=snapshot, stale=with_name(entry.stale, entry.snapshot))
        try:
            await ledger.flush(refuse=True)
            report = await self._capture.write(
                gpu, entry, target, tier, snapshot, kind=Kind.PARKED, options=options, by_itself=by_itself
            )
        except BaseException as e:
            ledger.update(name, snapshot=None, stale=with_name(ledger.entry(name).stale, snapshot))
            self._stores.trouble(tier, e)
            text = e.message if isinstance(e, KybernateError) else repr(e)
            self._events.record("park-failed", f"stays in RAM: {text}", workload=name, data={"tier": tier})
            raise
        ledger.update(name, tier=tier, also=(), pids=(), held={}, reason=f"{entry.reason}; {why}" if by_itself else why)
        await ledger.flush()
        await in_thread(f"end {name}", lambda: end_processes(gpu, self._workloads, name, tree))
        self._events.record(
            "parked",
            f"{why}: lies in {tier}, {format_size(report.bytes_total)} in {format_seconds(report.seconds)}, "
            f"{format_size(report.bytes_stored)} written",
            workload=name,
            data={
                "tier": tier,
                "snapshot": snapshot,
                "seconds": report.seconds,
                "bytes_total": report.bytes_total,
                "bytes_stored": report.bytes_stored,
                "closed": list(report.closed),
                "notes": list(report.notes),
            },
        )
        return report


def end_processes(gpu: GpuRuntime, workloads: Workloads, name: WorkloadName, tree: Tree | None) -> None:
    """In a thread. What could not be ended is a leftover, ended before the workload comes back."""
    workloads.detach(name)
    if tree is not None:
        try:
            tree.remove()
        except (KybernateError, OSError) as e:
            log.warning("processes of workload %s are left: %s", name, e)
        shutil.rmtree(tree.run_directory / LAYERS, ignore_errors=True)  # in the snapshot, and here perhaps in RAM
    gpu.broker.stop_listening(name)
    gpu.engine.forget(name)
