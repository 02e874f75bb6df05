"""Images of workloads, and clones made of them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence

from kybernate.agent.gear import Gear, GpuGear
from kybernate.agent.orders.ready import http_path, wait_ready
from kybernate.agent.orders.snapshot_catalog import Library
from kybernate.agent.orders.switching import Switching
from kybernate.agent.records.ledger import ARBITER, Changes, Entry
from kybernate.agent.records.lifecycle import Event
from kybernate.agent.tiers.parking import Parking, labels_of
from kybernate.agent.tiers.pool_eviction import PoolRoom
from kybernate.agent.tiers.store_discovery import number_in, sizes_in
from kybernate.agent.tiers.transfers import Transfers
from kybernate.agent.tiers.unparking import launched_of
from kybernate.agent.workloads.launches import left_of
from kybernate.agent.workloads.targets import is_external_name, look_at
from kybernate.agent.workloads.threads import in_thread
from kybernate.agent.workloads.workloads import Workloads
from kybernate.engine.capture import StoredReport
from kybernate.engine.stored import Kind
from kybernate.model import api
from kybernate.model.caller import Caller
from kybernate.model.errors import BadInput, Conflict, KybernateError, NoRoom
from kybernate.model.quantities import format_seconds, format_size, together
from kybernate.model.types import Backend, Depth, GpuUuid, TierName, WorkloadName, WorkloadState, workload_name
from kybernate.process.preflight import Connections
from kybernate.process.tree import Tree

_AT_ONCE = max(2, os.cpu_count() or 2)
"""Clones that are restored at the same time: each keeps a core busy."""


class Images:
    """Use it in the loop's thread."""

    def __init__(
        self,
        *,
        gear: Gear,
        workloads: Workloads,
        switching: Switching,
        parking: Parking,
        transfers: Transfers,
        pool_room: PoolRoom,
        library: Library,
    ) -> None:
        self._gear = gear
        self._workloads = workloads
        self._switching = switching
        self._parking = parking
        self._transfers = transfers
        self._pool_room = pool_room
        self._library = library

    async def snapshot(self, name: WorkloadName, wanted: api.SnapshotRequest) -> api.StoredView:
        """Take an image of a workload, which stands still meanwhile and then goes on as before.

        Raises:
            Conflict: there is a snapshot of that name, or the workload lies in the store itself.
            Busy: it was not ready in time, or can't be paused now. Unsupported: it can't be dumped.
            NoRoom, TierAway and others: of the store. It goes on as before.
        """
        gear = self._gear
        gpu = gear.need_gpu(so="it takes and restores no snapshots")
        path = None if wanted.ready is None else http_path(wanted.ready)
        entry = gear.ledger.entry(name)
        self._parking.refuse_early(entry)
        self._refuse_image(entry)
        connections = None if wanted.connections is None else Connections(wanted.connections)
        await self._refuse_taken(wanted.image, wanted.tier)
        began = gear.clock()
        if path is not None or wanted.ready_command:
            tree = self._workloads.tree(name)
            if entry.state is not WorkloadState.RUNNING or tree is None:
                raise Conflict(f"workload {name} is {entry.state}, so it can't be asked", hint="leave out --ready")
            await in_thread(
                f"ready {name}",
                lambda: wait_ready(tree, path=path, command=wanted.ready_command, timeout_s=wanted.ready_timeout_s),
            )

        asked_at = self._switching.gate.port_of(name)
        await self._parking.refuse_undumpable(
            gear.ledger.entry(name), connections, wanted.allow_changes, asked_at=asked_at
        )

        async def work() -> tuple[StoredReport, str | None]:
            self._refuse_image(gear.ledger.entry(name))
            return await self._switching.while_paused(
                name, lambda: self._take(gpu, name, wanted), why=f"for its image {wanted.image}"
            )

        report, note = await self._workloads.submit(name, "snapshot", work, detail=wanted)
        seconds = gear.clock() - began
        gear.events.record(
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

    async def _take(self, gpu: GpuGear, name: WorkloadName, wanted: api.SnapshotRequest) -> StoredReport:
        entry, tree = self._gear.ledger.entry(name), self._workloads.tree(name)
        target = await look_at(entry, tree)
        store = self._gear.settings.store
        connections = Connections(wanted.connections or store.connections)
        allow_changes = store.allow_changes if wanted.allow_changes is None else wanted.allow_changes
        with self._gear.jobs.begin("snapshot", name) as job:
            return await in_thread(
                f"image {name}",
                lambda: self._transfers.with_room(
                    wanted.tier,
                    lambda space: gpu.engine.snapshot(
                        target,
                        space,
                        wanted.image,
                        kind=Kind.IMAGE,
                        labels=labels_of(entry, Kind.IMAGE),
                        progress=job.tell,
                        cancel=job.stop,
                        connections=connections,
                        allow_changes=allow_changes,
                    ),
                ),
            )

    async def clone(
        self, image: str, wanted: api.CloneRequest, caller: Caller, *, by_itself: bool = False
    ) -> api.CloneList:
        """Make workloads of an image. The first gets room as an allocation does; others run as far as they fit, and when
        there is room.

        Args:
            by_itself: no person ordered it, so it isn't one that a person stopped.

        Raises:
            NotFound: no such image. BadInput: it is none, or can't run here. Conflict: a name is taken.
            Busy: the agent starts nothing any more.
            what restoring the first failed with, where none came to be.
        """
        gear = self._gear
        gpu = gear.need_gpu(so="it takes and restores no snapshots")
        names = _names(wanted)
        tier, manifest = await self._library.image(image, caller)
        self._refuse_names(names, caller, by_itself=by_itself)
        if reasons := await in_thread(f"look at {image}", lambda: gpu.engine.refusals(gear.stores.space(tier), image)):
            raise BadInput(f"image {image} can't run here: {'; '.join(reasons[:3])}")
        began, now = gear.clock(), gear.clock()
        self._refuse_names(names, caller, by_itself=by_itself)  # some may be taken by now, and all come or none
        for name in names:
            gear.starts.allow(name)
            old = gear.ledger.get(name)
            gear.ledger.add(
                Entry(
                    name=name,
                    state=WorkloadState.STARTING,
                    since=now,
                    backend=Backend(manifest.labels.get("backend", Backend.BROKER)),
                    last_use=now,
                    reason=f"being cloned from {image}",
                    argv=tuple(part for part in [manifest.labels.get("program", "")] if part),
                    uid=number_in(manifest.labels, "uid") or 0,
                    gid=number_in(manifest.labels, "gid") or 0,
                    paused_by=ARBITER,
                    stale=() if old is None else old.stale,
                    kept=left_of(old),
                    image=image,
                )
            )
        turns = asyncio.Semaphore(_AT_ONCE)

        unmanaged = sizes_in(manifest.labels, "unmanaged")

        async def one(number: int, name: WorkloadName) -> api.CloneView | KybernateError:
            async with turns:
                try:
                    note = await self._workloads.submit(
                        name,
                        "clone",
                        lambda: self._clone(
                            gpu,
                            name,
                            image,
                            tier,
                            first=number == 0,
                            wait_s=wanted.timeout_s,
                            unmanaged=unmanaged,
                            since=now,
                        ),
                        detail=(image, tier, wanted),
                    )
                except KybernateError as e:
                    return e
                state = gear.ledger.entry(name).state
                return api.CloneView(workload=name, state=state, seconds=gear.clock() - began, note=note)

        made = await asyncio.gather(*(one(number, name) for number, name in enumerate(names)))
        if all(isinstance(each, KybernateError) for each in made):
            raise next(each for each in made if isinstance(each, KybernateError))
        clones = [
            each
            if isinstance(each, api.CloneView)
            else api.CloneView(
                workload=name,
                state=WorkloadState.EXITED if (entry := gear.ledger.get(name)) is None else entry.state,
                seconds=gear.clock() - began,
                note=each.message,
            )
            for name, each in zip(names, made, strict=True)
        ]
        return api.CloneList(image=image, seconds=gear.clock() - began, clones=clones)

    async def _clone(
        self,
        gpu: GpuGear,
        name: WorkloadName,
        image: str,
        tier: TierName,
        *,
        first: bool,
        wait_s: float,
        unmanaged: Mapping[GpuUuid, int],
        since: float,
    ) -> str | None:
        """In the clone's owner task. Returns why it isn't running yet, if so.

        Args:
            since: when it was ordered, by its entry: another one may have taken its name.
        """
        gear = self._gear
        entry = gear.ledger.entry(name)
        if (entry.state, entry.image, entry.since) != (WorkloadState.STARTING, image, since):
            raise Conflict(f"workload {name} was stopped before it had come")
        try:
            gear.starts.refuse()
            with gear.jobs.begin("clone", name) as job:

                def revive() -> Tree:
                    self._workloads.clear_place(name)
                    return gpu.engine.revive(
                        gear.stores.space(tier),
                        image,
                        name,
                        run_directory=gear.state.run_directory(name),
                        progress=job.tell,
                        cancel=job.stop,
                        keep_staged=True,
                    )

                tree = await self._pool_room.with_room(gpu, name, revive)
        except Exception as e:
            reason = e.message if isinstance(e, KybernateError) else repr(e)
            gear.ledger.apply(name, Event.START_FAILED, reason=f"could not be cloned: {reason}")
            gear.events.record("start-failed", f"not cloned from {image}: {reason}", workload=name)
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
        gear.ledger.apply(name, Event.FOUND_PAUSED, **changes)
        gear.events.record("cloned", f"from {image} in {tier}", workload=name, data={"image": image, "tier": tier})
        try:
            await self._switching.resume_within(
                name, may_evict=first, wait_s=wait_s if first else 0.0, why=f"cloned from {image}"
            )
        except NoRoom as e:
            return f"waits for room: {e.message}"
        return None

    def _refuse_names(self, names: Sequence[WorkloadName], caller: Caller, *, by_itself: bool) -> None:
        starts = self._gear.starts
        starts.refuse()
        for name in names:
            old = self._gear.ledger.get(name)
            if old is not None and not old.ended:
                raise Conflict(f"a workload named {name} is {old.state} already", hint="choose another name")
            if old is not None:
                caller.require_owner(old.uid, f"the ended workload {name}")
            if by_itself:
                starts.refuse_by_itself(name)

    def _refuse_image(self, entry: Entry) -> None:
        if entry.state not in (WorkloadState.RUNNING, WorkloadState.PAUSED, WorkloadState.STARTING):
            raise Conflict(f"workload {entry.name} is {entry.state}", hint=f"`kybernate explain {entry.name}`")
        if entry.state is WorkloadState.PAUSED and entry.tier is not TierName.RAM:
            raise Conflict(
                f"workload {entry.name} lies in {entry.tier}, no process of it is there",
                hint=f"`kybernate resume {entry.name}` first",
            )

    async def _refuse_taken(self, image: str, tier: TierName) -> None:
        if tier is TierName.RAM:
            raise BadInput("an image lies in nvme or object", hint="give --tier nvme")
        await in_thread(f"open {tier}", lambda: self._gear.stores.space(tier))
        try:
            found = await in_thread(f"look for {image}", lambda: self._gear.stores.find(image))
        except KybernateError:
            return  # nowhere, or another tier doesn't say
        raise Conflict(f"there is a snapshot {image} in {found[0]} already", hint="choose another name")


def _names(wanted: api.CloneRequest) -> Sequence[WorkloadName]:
    texts = [wanted.name] if wanted.count is None else [f"{wanted.name}-{k + 1}" for k in range(wanted.count)]
    names = [workload_name(text) for text in texts]
    if is_external_name(names[0]) or is_external_name(names[-1]):
        raise BadInput(f"{names[0]} names a process that was not started by Kybernate", hint="choose another name")
    return names
