"""The stored snapshots: images taken of workloads and clones made of them; listing, moving, removing, verifying, collecting."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

from kybernate import store
from kybernate.engine.parking import StoredReport
from kybernate.engine.stored import Kind
from kybernate.model import api
from kybernate.model.errors import BadInput, Conflict, KybernateError, NoRoom, NotFound, Unsupported
from kybernate.model.quantities import format_seconds, format_size
from kybernate.model.types import Backend, Depth, TierName, WorkloadName, WorkloadState, workload_name
from kybernate.node import staged
from kybernate.node.caller import Caller
from kybernate.node.found import labels_in, number_in, rows
from kybernate.node.gear import Gear, GpuGear
from kybernate.node.ledger import ARBITER, Entry
from kybernate.node.leftovers import Leftovers
from kybernate.node.lifecycle import Event
from kybernate.node.parking import Parking, labels_of
from kybernate.node.pool_room import PoolRoom
from kybernate.node.ready import http_path, wait_ready
from kybernate.node.switching import Switching
from kybernate.node.targets import is_external_name, look_at
from kybernate.node.threads import in_thread
from kybernate.node.transfers import Transfers
from kybernate.node.unparking import launched_of
from kybernate.node.workloads import Workloads, left_of
from kybernate.process.preflight import Connections
from kybernate.process.tree import Tree
from kybernate.store.progress import Cancel

_AT_ONCE = max(2, os.cpu_count() or 2)
"""Clones that are restored at the same time: each keeps a core busy."""


class Library:
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
        leftovers: Leftovers,
    ) -> None:
        self._gear = gear
        self._workloads = workloads
        self._switching = switching
        self._parking = parking
        self._transfers = transfers
        self._pool_room = pool_room
        self._leftovers = leftovers

    # -- images ------------------------------------------------------------------------------------------------------

    async def snapshot(self, name: WorkloadName, wanted: api.SnapshotRequest) -> api.StoredView:
        """Take an image of a workload, which stands still meanwhile and then goes on as before.

        Raises:
            Conflict: there is a snapshot of that name, or the workload lies in the store itself.
            Busy: it was not ready in time, or can't be paused now. Unsupported: it can't be dumped.
            NoRoom, TierAway and others: of the store. It goes on as before.
        """
        gear, gpu = self._gear, self._gpu()
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
        await self._parking.refuse_undumpable(gear.ledger.entry(name), connections, asked_at=asked_at)

        async def work() -> tuple[StoredReport, str | None]:
            self._refuse_image(gear.ledger.entry(name))
            return await self._switching.while_paused(
                name, lambda: self._take(gpu, name, wanted), why=f"for its image {wanted.image}"
            )

        report, note = await self._workloads.submit(name, "snapshot", work, detail=wanted.image)
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
        )

    async def _take(self, gpu: GpuGear, name: WorkloadName, wanted: api.SnapshotRequest) -> StoredReport:
        entry, tree = self._gear.ledger.entry(name), self._workloads.tree(name)
        target = await look_at(entry, tree)
        connections = Connections(wanted.connections or self._gear.settings.store.connections)
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
                    ),
                ),
            )

    async def clone(self, image: str, wanted: api.CloneRequest, caller: Caller) -> api.CloneList:
        """Make workloads of an image. The first gets room as an allocation does; others run as far as they fit, and when
        there is room.

        Raises:
            NotFound: no such image. BadInput: it is none, or can't run here. Conflict: a name is taken.
            what restoring the first failed with, where none came to be.
        """
        gear, gpu = self._gear, self._gpu()
        names = _names(wanted)
        tier, manifest = await self._image(image, caller)
        for name in names:
            old = gear.ledger.get(name)
            if old is None:
                continue
            if not old.ended:
                raise Conflict(f"a workload named {name} is {old.state} already", hint="choose another name")
            caller.require_owner(old.uid, f"the ended workload {name}")
        if reasons := await in_thread(f"look at {image}", lambda: gpu.engine.refusals(gear.stores.space(tier), image)):
            raise BadInput(f"image {image} can't run here: {'; '.join(reasons[:3])}")
        began, now = gear.clock(), gear.clock()
        for name in names:
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

        async def one(number: int, name: WorkloadName) -> api.CloneView | KybernateError:
            async with turns:
                try:
                    note = await self._workloads.submit(
                        name,
                        "clone",
                        lambda: self._clone(gpu, name, image, tier, first=number == 0, wait_s=wanted.timeout_s),
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
                workload=name, state=gear.ledger.entry(name).state, seconds=gear.clock() - began, note=each.message
            )
            for name, each in zip(names, made, strict=True)
        ]
        return api.CloneList(image=image, seconds=gear.clock() - began, clones=clones)

    async def _clone(
        self, gpu: GpuGear, name: WorkloadName, image: str, tier: TierName, *, first: bool, wait_s: float
    ) -> str | None:
        """In the clone's owner task. Returns why it isn't running yet, if so."""
        gear = self._gear
        try:
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
        gear.ledger.apply(
            name,
            Event.FOUND_PAUSED,
            reason=f"cloned from {image}",
            depth=Depth.ZERO,
            paused_by=ARBITER,
            evicted=gpu.engine.away_bytes(name),
            pids=tuple(tree.pids()),
            **({} if launched is None else {"argv": launched.argv, "directory": launched.directory}),
        )
        gear.events.record("cloned", f"from {image} in {tier}", workload=name, data={"image": image, "tier": tier})
        try:
            await self._switching.resume_within(
                name, may_evict=first, wait_s=wait_s if first else 0.0, why=f"cloned from {image}"
            )
        except NoRoom as e:
            return f"waits for room: {e.message}"
        return None

    # -- looking -----------------------------------------------------------------------------------------------------

    async def listing(self) -> api.SnapshotList:
        """All snapshots in all tiers, as far as they answer."""
        views: dict[str, api.SnapshotView] = {}
        problems: list[str] = []
        for tier in self._tiers(None):
            try:
                there = await in_thread(f"list {tier}", lambda tier=tier: rows(self._gear.stores, tier))  # type: ignore[misc]
            except KybernateError as e:
                problems.append(f"{tier}: {e.message}")
                continue
            space = self._gear.stores.ready(tier)
            problems += [f"{tier}: {text}" for text in (space.last_changes.problems if space is not None else ())]
            for row in there:
                labels = labels_in(row)
                seen = views.get(row.name)
                views[row.name] = api.SnapshotView(
                    name=row.name,
                    kind=labels.get("kind", ""),
                    workload=labels.get("workload", ""),
                    tiers=[*(() if seen is None else seen.tiers), tier],
                    uid=number_in(labels, "uid") or 0,
                    created=row.created,
                    size_bytes=row.size,
                )
        return api.SnapshotList(snapshots=sorted(views.values(), key=lambda view: view.name), problems=problems)

    # -- moving, removing --------------------------------------------------------------------------------------------

    async def move(self, subject: str, wanted: api.MoveRequest, caller: Caller) -> api.StoredView:
        """Let a paused workload, or an image, lie in another tier; RAM stands for its content in the pool, beside."""
        gear = self._gear
        entry = gear.ledger.get(WorkloadName(subject))
        if entry is not None and not entry.ended:
            caller.require_owner(entry.uid, f"workload {subject}")
            connections = None if wanted.connections is None else Connections(wanted.connections)
            return await self._switching.move(entry.name, wanted.tier, connections=connections, keep=wanted.keep)
        source, manifest = await self._readable(subject, caller)
        if manifest.labels.get("kind") == Kind.PARKED and self._holder(manifest.name) is not None:
            raise Conflict(f"workload {self._holder(manifest.name)} lies in it", hint="give the workload's name")
        began = gear.clock()
        view = api.StoredView(
            subject=subject, operation="move", tier=wanted.tier, snapshot=subject, bytes_total=manifest.size
        )
        if wanted.tier is TierName.RAM:
            gpu = self._gpu()
            with gear.jobs.begin("stage", subject) as job:
                report = await in_thread(
                    f"stage {subject}",
                    lambda: gpu.engine.stage(gear.stores.space(source), subject, progress=job.tell, cancel=job.stop),
                )
            already = report.bytes_read == 0
        else:
            already = source is wanted.tier
            if not already:
                with gear.jobs.begin("move", subject) as job:
                    await self._transfers.copy(job, subject, source, wanted.tier, away=not wanted.keep)
                if not wanted.keep:
                    await in_thread(f"forget {subject}", lambda: self._leftovers.delete(subject, source))
                gear.events.record(
                    "moved", f"snapshot {subject} from {source} to {wanted.tier}{', too' if wanted.keep else ''}"
                )
        return view.model_copy(update={"seconds": gear.clock() - began, "already": already})

    async def remove(self, snapshot: str, tier: TierName | None, caller: Caller) -> api.StoredView:
        """Delete a snapshot, from one tier or all. Its chunks stay until garbage is collected.

        Raises:
            Conflict: a workload lies in it. NotFound.
        """
        gear = self._gear
        checked = store.snapshot_name(snapshot)
        if (holder := self._holder(checked)) is not None:
            raise Conflict(f"workload {holder} lies in it", hint=f"`kybernate stop {holder}` ends it")
        await self._require_owner(checked, caller)
        removed: list[TierName] = []
        trouble: KybernateError | None = None
        for name in self._tiers(tier):
            try:
                await in_thread(f"remove {checked}", lambda name=name: gear.stores.space(name).delete(checked))  # type: ignore[misc]
            except NotFound:
                continue
            except KybernateError as e:
                trouble = e
                continue
            removed.append(name)
        if trouble is not None:
            raise trouble
        if tier is None:
            self._forget_kept(checked)
        if not removed:
            raise NotFound(f"there is no snapshot {checked} in {tier}", hint="`kybernate snapshots` lists them")
        if gear.gpu is not None:
            if tier is None:
                staged.drop_of(gear.gpu.engine, checked)
            else:
                await self._drop_gone(gear.gpu)
        gear.events.record("snapshot-removed", f"snapshot {checked} from {', '.join(removed)}")
        return api.StoredView(subject=checked, operation="remove", snapshot=checked, tier=removed[0])

    # -- the store itself --------------------------------------------------------------------------------------------

    async def verify(self, wanted: api.VerifyRequest, caller: Caller) -> api.VerifiedList:
        """Read everything, or some snapshots and what they need, and compare it with its hashes."""
        names: list[str] = []
        for text in wanted.names:
            entry = self._gear.ledger.get(WorkloadName(text))
            name = entry.snapshot if entry is not None and entry.snapshot is not None else text
            await self._require_owner(name, caller)
            names.append(name)
        if not names:
            caller.require_owner(os.geteuid(), "the store")
        views = []
        for tier in self._tiers(wanted.tier):
            with self._gear.jobs.begin("verify", str(tier)) as job:
                cancel = Cancel()

                def work(tier: TierName = tier, cancel: Cancel = cancel) -> store.Verified | None:
                    space = self._gear.stores.space(tier)
                    there = [name for name in names if _has(space, name)]
                    if names and not there:
                        return None
                    with job.stop.told(cancel.set):
                        return store.verify(
                            space, there or None, content=wanted.content, progress=job.tell, cancel=cancel
                        )

                verified = await in_thread(f"verify {tier}", work)
            if verified is not None:
                views.append(_verified(tier, verified))
        for view in views:
            for problem in view.problems:
                self._gear.events.record(
                    "damaged", f"{view.tier}: {problem.text}", data={"snapshots": problem.snapshots}
                )
        return api.VerifiedList(tiers=views)

    async def collect(self, wanted: api.CollectRequest, caller: Caller) -> api.CollectedList:
        """Remove what no snapshot needs, in RAM as well."""
        caller.require_owner(os.geteuid(), "the store")
        if wanted.accept_loss and wanted.tier is None:
            raise BadInput("of which tier is the loss accepted?", hint="give --tier")
        views = []
        for tier in self._tiers(wanted.tier):
            with self._gear.jobs.begin("gc", str(tier)) as job:
                cancel = Cancel()

                def work(tier: TierName = tier, cancel: Cancel = cancel) -> store.Swept:
                    space = self._gear.stores.space(tier, accept_loss=wanted.accept_loss)
                    with job.stop.told(cancel.set):
                        return store.collect(space, dry=wanted.dry_run, progress=job.tell, cancel=cancel)

                swept = await in_thread(f"gc {tier}", work)
            views.append(
                api.CollectedView(
                    tier=tier,
                    packs=swept.packs,
                    removed=swept.removed,
                    compacted=swept.compacted,
                    bytes_freed=swept.freed,
                    left=list(swept.left),
                )
            )
        if self._gear.gpu is not None and not wanted.dry_run:
            await self._drop_gone(self._gear.gpu)
        return api.CollectedList(tiers=views, dry_run=wanted.dry_run)

    # -- helpers -----------------------------------------------------------------------------------------------------

    async def _drop_gone(self, gpu: GpuGear) -> None:
        await in_thread("look what is staged", lambda: staged.drop_gone(gpu.engine, self._gear.stores))

    def _tiers(self, wanted: TierName | None) -> list[TierName]:
        """Those that are in use; of one that was named it is said if it isn't there."""
        stores = self._gear.stores
        if wanted is TierName.RAM:
            raise BadInput("what lies in RAM is no snapshot", hint="give --tier nvme or object")
        if wanted is not None:
            return [wanted]
        return [name for name in stores.names() if name is not TierName.NVME or stores.exists(name)]

    async def _readable(self, snapshot: str, caller: Caller) -> tuple[TierName, store.Manifest]:
        """The best copy of a snapshot, if it is the caller's. Raises NotFound, NotPermitted, Damaged and others."""
        checked = store.snapshot_name(snapshot)
        tier = await self._best(checked)
        manifest = await in_thread(f"read {checked}", lambda: self._gear.stores.space(tier).manifest(checked))
        owner = number_in(manifest.labels, "uid")
        caller.require_owner(os.geteuid() if owner is None else owner, f"snapshot {checked}")
        return tier, manifest

    async def _best(self, snapshot: str) -> TierName:
        """The first tier that has it. Raises NotFound, or what a tier says that could not be asked."""
        stores = self._gear.stores
        return await in_thread(f"find {snapshot}", lambda: stores.find(snapshot, one=True)[0])

    async def _require_owner(self, snapshot: str, caller: Caller) -> None:
        """Also of one that can't be read: that is the agent's own user's to deal with. Raises NotFound, NotPermitted."""
        try:
            await self._readable(snapshot, caller)
        except (store.Damaged, store.TooNew):
            caller.require_owner(os.geteuid(), f"snapshot {snapshot}, which can't be read,")

    async def _image(self, image: str, caller: Caller) -> tuple[TierName, store.Manifest]:
        tier, manifest = await self._readable(image, caller)
        if manifest.labels.get("kind") != Kind.IMAGE and not self._kept_by(image):
            raise BadInput(
                f"snapshot {image} is no image: workload {manifest.labels.get('workload')} lies in it",
                hint="take one: `kybernate snapshot NAME --as IMAGE`",
            )
        return tier, manifest

    def _holder(self, snapshot: str) -> WorkloadName | None:
        """Who lies in it."""
        for entry in self._gear.ledger.entries().values():
            if entry.snapshot == snapshot and not entry.ended:
                return entry.name
        return None

    def _kept_by(self, snapshot: str) -> list[Entry]:
        """Who was started anew, or overtaken elsewhere, and has it as an image of what it was."""
        return [entry for entry in self._gear.ledger.entries().values() if snapshot in entry.kept]

    def _forget_kept(self, snapshot: str) -> None:
        for entry in self._kept_by(snapshot):
            self._gear.ledger.update(entry.name, kept=tuple(other for other in entry.kept if other != snapshot))

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

    def _gpu(self) -> GpuGear:
        if self._gear.gpu is None:
            raise Unsupported("this agent has no GPU, so it takes and restores no snapshots", hint="`kybernate doctor`")
        return self._gear.gpu


def _names(wanted: api.CloneRequest) -> Sequence[WorkloadName]:
    texts = [wanted.name] if wanted.count is None else [f"{wanted.name}-{k + 1}" for k in range(wanted.count)]
    names = [workload_name(text) for text in texts]
    if is_external_name(names[0]) or is_external_name(names[-1]):
        raise BadInput(f"{names[0]} names a process that was not started by Kybernate", hint="choose another name")
    return names


def _has(space: store.Space, name: str) -> bool:
    try:
        space.manifest(name)
    except NotFound:
        return False
    except KybernateError:
        return True
    return True


def _verified(tier: TierName, found: store.Verified) -> api.VerifiedView:
    return api.VerifiedView(
        tier=tier,
        snapshots=found.snapshots,
        packs=found.packs,
        chunks=found.chunks,
        bytes_read=found.bytes_read,
        problems=[api.ProblemView(text=each.text, snapshots=list(each.snapshots)) for each in found.problems],
    )
