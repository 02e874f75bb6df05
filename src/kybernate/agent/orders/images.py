"""Images of workloads. clones.py makes workloads of them."""

from __future__ import annotations

from collections.abc import Callable

from kybernate.agent.orders.ready import http_path, wait_ready
from kybernate.agent.orders.snapshot_catalog import SnapshotCatalog
from kybernate.agent.orders.switching import Switching
from kybernate.agent.records.events import Events
from kybernate.agent.records.ledger import Entry, Ledger
from kybernate.agent.tiers.capture import DumpOptions, SnapshotCapture
from kybernate.agent.workloads.runtime import GpuRuntime, need_gpu
from kybernate.agent.workloads.targets import look_at
from kybernate.agent.workloads.threads import in_thread
from kybernate.agent.workloads.workloads import Workloads
from kybernate.engine.capture import StoredReport
from kybernate.engine.stored import Kind
from kybernate.model import api
from kybernate.model.errors import Conflict
from kybernate.model.quantities import format_seconds, format_size
from kybernate.model.types import TierName, WorkloadName, WorkloadState


class Images:
    """Use it in the loop's thread."""

    def __init__(
        self,
        *,
        gpu: GpuRuntime | None,
        ledger: Ledger,
        events: Events,
        clock: Callable[[], float],
        catalog: SnapshotCatalog,
        workloads: Workloads,
        switching: Switching,
        capture: SnapshotCapture,
    ) -> None:
        self._gpu = gpu
        self._ledger = ledger
        self._events = events
        self._clock = clock
        self._catalog = catalog
        self._workloads = workloads
        self._switching = switching
        self._capture = capture

    async def snapshot(self, name: WorkloadName, wanted: api.SnapshotRequest) -> api.StoredView:
        """Take an image of a workload, which stands still meanwhile and then goes on as before.

        Raises:
            Conflict: there is a snapshot of that name, or the workload lies in the store itself.
            Busy: it was not ready in time, or can't be paused now. Unsupported: it can't be dumped.
            NoRoom, TierAway and others: of the store. It goes on as before.
        """
        gpu = need_gpu(self._gpu, so="it takes and restores no snapshots")
        path = None if wanted.ready is None else http_path(wanted.ready)
        entry = self._ledger.entry(name)
        self._capture.refuse_early(entry)
        _refuse_image(entry)
        options = DumpOptions.of(wanted.connections, wanted.allow_changes)
        await self._catalog.refuse_taken(wanted.image, wanted.tier)
        began = self._clock()
        if path is not None or wanted.ready_command:
            tree = self._workloads.tree(name)
            if entry.state is not WorkloadState.RUNNING or tree is None:
                raise Conflict(f"workload {name} is {entry.state}, so it can't be asked", hint="leave out --ready")
            await in_thread(
                f"ready {name}",
                lambda: wait_ready(tree, path=path, command=wanted.ready_command, timeout_s=wanted.ready_timeout_s),
            )
        await self._capture.refuse_undumpable(self._ledger.entry(name), options)

        async def work() -> tuple[StoredReport, str | None]:
            _refuse_image(self._ledger.entry(name))
            return await self._switching.while_paused(
                name, lambda: self._take(gpu, name, wanted, options), why=f"for its image {wanted.image}"
            )

        report, note = await self._workloads.submit(name, "snapshot", work, detail=wanted)
        seconds = self._clock() - began
        self._events.record(
            "imaged",
            f"image {wanted.image} in {wanted.tier}: {format_size(report.bytes_total)} in {format_seconds(seconds)}, "
            f"{format_size(report.bytes_stored)} written",
            workload=name,
            data={"image": wanted.image, "tier": wanted.tier, "seconds": seconds, "bytes_stored": report.bytes_stored},
        )
        return api.StoredView(
            subject=name,
            operation="snapshot",
            tier=wanted.tier,
            snapshot=wanted.image,
            seconds=seconds,
            bytes_total=report.bytes_total,
            bytes_stored=report.bytes_stored,
            note=note,
            notes=list(report.notes),
        )

    async def _take(
        self, gpu: GpuRuntime, name: WorkloadName, wanted: api.SnapshotRequest, options: DumpOptions
    ) -> StoredReport:
        entry = self._ledger.entry(name)
        target = await look_at(entry, self._workloads.tree(name))
        return await self._capture.write(
            gpu, entry, target, wanted.tier, wanted.image, kind=Kind.IMAGE, options=options
        )


def _refuse_image(entry: Entry) -> None:
    if entry.state not in (WorkloadState.RUNNING, WorkloadState.PAUSED, WorkloadState.STARTING):
        raise Conflict(f"workload {entry.name} is {entry.state}", hint=f"`kybernate explain {entry.name}`")
    if entry.state is WorkloadState.PAUSED and entry.tier is not TierName.RAM:
        raise Conflict(
            f"workload {entry.name} lies in {entry.tier}, no process of it is there",
            hint=f"`kybernate resume {entry.name}` first",
        )
