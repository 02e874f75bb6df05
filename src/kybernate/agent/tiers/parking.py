"""Workloads on their way below RAM: into the store, with their processes ended. unparking.py has the way back.

Each step runs in the workload's owner task. Its ledger entry stays `paused` through all of it; `tier` says where it lies, and
is on disk before anything is given up that it no longer speaks of:

    park     ledger names the snapshot to be -> engine writes it -> ledger: tier below RAM -> processes end, pool is freed
    unpark   engine brings content and processes back, paused -> ledger: tier RAM -> an ordinary resume -> snapshot is deleted

So whenever the agent dies, a new one knows which of the two is the workload: in RAM, its processes; below, its snapshot.
"""

from __future__ import annotations

import json
import logging
import secrets
import shutil

from kybernate.agent.gear import Gear, GpuGear
from kybernate.agent.records.ledger import Entry
from kybernate.agent.records.views import program
from kybernate.agent.tiers.stale_snapshots import with_name
from kybernate.agent.tiers.transfers import Transfers
from kybernate.agent.workloads.targets import look_at
from kybernate.agent.workloads.threads import in_thread
from kybernate.agent.workloads.workloads import Workloads
from kybernate.engine.capture import StoredReport
from kybernate.engine.stored import Kind
from kybernate.model.errors import Conflict, KybernateError, NotFound, Unsupported
from kybernate.model.quantities import format_seconds, format_size
from kybernate.model.types import Depth, TierName, WorkloadName, WorkloadState
from kybernate.process.preflight import Connections, dumpable
from kybernate.process.specs import LAYERS
from kybernate.process.tree import Tree

log = logging.getLogger(__name__)


class Parking:
    """See the module. Use it in the loop's thread."""

    def __init__(self, *, gear: Gear, workloads: Workloads, transfers: Transfers) -> None:
        self._gear = gear
        self._workloads = workloads
        self._transfers = transfers
        workloads.fall_back = self.ended_in_ram

    def refuse_early(self, entry: Entry) -> None:
        """What can be said before anything is done. Raises Unsupported."""
        if entry.external:
            raise Unsupported(
                f"process {entry.name.removeprefix('pid-')} was not started by Kybernate, so it stays in memory",
                hint="start it with `kybernate run`",
            )

    async def refuse_undumpable(
        self, entry: Entry, connections: Connections | None, allow_changes: bool | None, *, asked_at: int | None = None
    ) -> None:
        """Of one that runs: what hinders a dump is found before it is paused, as far as it can be. Raises Unsupported.

        Args:
            asked_at: port where it is asked through the gate: who is connected there leaves before the pause.
        """
        tree = self._workloads.tree(entry.name)
        if entry.state is not WorkloadState.RUNNING or tree is None:
            return
        simulation = self._gear.simulation
        problems = await in_thread(
            f"look at {entry.name}",
            lambda: dumpable(
                tree,
                connections=connections or self._gear.settings.store.connections,
                allow_changes=self._allows(allow_changes),
                gpu_released=False,
                asked_at=asked_at,
                gpu_directories=[] if simulation is None else [path for path in simulation.setting.split(":") if path],
            ),
        )
        if problems:
            more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise Unsupported(
                f"workload {entry.name} can't be dumped, so it can't leave memory: {'; '.join(problems[:3])}{more}",
                hint="it runs on; `kybernate pause` keeps it in RAM",
            )

    def _allows(self, changes: bool | None) -> bool:
        return self._gear.settings.store.allow_changes if changes is None else changes

    async def park(
        self,
        gpu: GpuGear,
        name: WorkloadName,
        tier: TierName,
        *,
        connections: Connections | None = None,
        allow_changes: bool | None = None,
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
        gear, ledger = self._gear, self._gear.ledger
        entry = ledger.entry(name)
        self.refuse_early(entry)
        if entry.state is not WorkloadState.PAUSED or entry.depth is not Depth.ZERO or gpu.engine.unfinished(name):
            raise Conflict(f"workload {name} isn't paused to depth zero", hint=f"`kybernate pause {name}` first")
        tree = self._workloads.tree(name)
        target = await look_at(entry, tree)
        await in_thread(f"open {tier}", lambda: gear.stores.space(tier))
        snapshot = f"{Kind.PARKED}.{name}.{secrets.token_hex(4)}"
        ledger.update(name, snapshot=snapshot, stale=with_name(entry.stale, entry.snapshot))
        try:
            await gear.flush(refuse=True)
            with gear.jobs.begin("park", name, yielding=by_itself) as job:
                report = await in_thread(
                    f"park {name}",
                    lambda: self._transfers.with_room(
                        tier,
                        lambda space: gpu.engine.snapshot(
                            target,
                            space,
                            snapshot,
                            kind=Kind.PARKED,
                            labels=labels_of(entry, Kind.PARKED),
                            progress=job.tell,
                            cancel=job.stop,
                            connections=connections or gear.settings.store.connections,
                            allow_changes=self._allows(allow_changes),
                        ),
                    ),
                )
        except BaseException as e:
            ledger.update(name, snapshot=None, stale=with_name(ledger.entry(name).stale, snapshot))
            gear.stores.trouble(tier, e)
            text = e.message if isinstance(e, KybernateError) else repr(e)
            gear.events.record("park-failed", f"stays in RAM: {text}", workload=name, data={"tier": tier})
            raise
        ledger.update(name, tier=tier, also=(), pids=(), held={}, reason=f"{entry.reason}; {why}" if by_itself else why)
        await gear.flush()
        await in_thread(f"end {name}", lambda: self._end_processes(gpu, name, tree))
        gear.events.record(
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

    def _end_processes(self, gpu: GpuGear, name: WorkloadName, tree: Tree | None) -> None:
        """In a thread. What could not be ended is a leftover, ended before the workload comes back."""
        self._workloads.detach(name)
        if tree is not None:
            try:
                tree.remove()
            except (KybernateError, OSError) as e:
                log.warning("processes of workload %s are left: %s", name, e)
            shutil.rmtree(tree.run_directory / LAYERS, ignore_errors=True)  # in the snapshot, and here perhaps in RAM
        gpu.broker.stop_listening(name)
        gpu.engine.forget(name)

    # -- what is left when RAM is lost --------------------------------------------------------------------------------

    async def fall_back(self, gpu: GpuGear, name: WorkloadName, *, sure: bool = True) -> TierName | None:
        """What a workload had in RAM is gone: if there is an equal copy in the store, that is the workload now.

        Args:
            sure: not where a tier doesn't answer that may have it.

        Returns where it lies; None: there is none, or nobody can tell.
        """
        entry = self._gear.ledger.entry(name)
        if entry.snapshot is None or entry.tier is not TierName.RAM:
            return None
        snapshot = entry.snapshot
        try:
            tier = (await in_thread(f"find {name}", lambda: self._gear.stores.find(snapshot, one=True)))[0]
        except KybernateError as e:
            log.warning("no copy of workload %s can be found: %s", name, e)
            if sure or isinstance(e, NotFound):
                return None
            tier = TierName.NVME  # all are looked into when it is asked for
        tree = self._workloads.tree(name)
        self._gear.ledger.update(name, tier=tier, pids=(), depth=Depth.ZERO)
        await self._gear.flush()
        await in_thread(f"end {name}", lambda: self._end_processes(gpu, name, tree))
        return tier

    async def ended_in_ram(self, name: WorkloadName) -> bool:
        """The processes of a workload that is paused in RAM have ended, by no order. Whether a copy takes their place: one
        that was brought back from the store has it until it runs."""
        gpu = self._gear.gpu
        if gpu is None or self._gear.ledger.entry(name).state is not WorkloadState.PAUSED:
            return False
        tier = await self.fall_back(gpu, name, sure=False)
        if tier is None:
            return False
        why = "its processes ended while it was paused; its copy in the store takes their place"
        self._gear.ledger.update(name, reason=why)
        self._gear.events.record("fell-back", why, workload=name, data={"tier": tier})
        return True


def labels_of(entry: Entry, kind: Kind) -> dict[str, str]:
    """What a listing shows of a snapshot, and what an agent needs that never saw the workload. No command line: that may
    hold secrets, and lies encrypted with the processes' images."""
    return {
        "kind": kind,
        "workload": entry.name,
        "uid": str(entry.uid),
        "gid": str(entry.gid),
        "backend": entry.backend,
        "program": program(entry.argv) if entry.argv else "",
        "evicted": json.dumps(dict(entry.evicted)),
        "unmanaged": json.dumps(dict(entry.unmanaged)),
    }
