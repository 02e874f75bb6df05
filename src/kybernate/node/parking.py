"""Workloads on their way below RAM and back: into the store with their processes ended, and out of it again.

Each step runs in the workload's owner task. Its ledger entry stays `paused` through all of it; `tier` says where it lies, and
is on disk before anything is given up that it no longer speaks of:

    park     ledger names the snapshot to be -> engine writes it -> ledger: tier below RAM -> processes end, pool is freed
    unpark   engine brings content and processes back, paused -> ledger: tier RAM -> an ordinary resume -> snapshot is deleted

So whenever the agent dies, a new one knows which of the two is the workload: in RAM, its processes; below, its snapshot.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from kybernate import store
from kybernate.engine.parking import StoredReport
from kybernate.engine.stored import Kind
from kybernate.model.errors import (
    BadInput,
    Busy,
    Conflict,
    KybernateError,
    NoRoom,
    NotFound,
    Unsupported,
    WorkloadLost,
)
from kybernate.model.quantities import format_seconds, format_size
from kybernate.model.types import Depth, TierName, WorkloadName, WorkloadState
from kybernate.node.claims import Claims, Taken, agent_id
from kybernate.node.demotion import least_valuable
from kybernate.node.found import evicted_in, later
from kybernate.node.gear import Gear, GpuGear
from kybernate.node.jobs import Job
from kybernate.node.ledger import Entry
from kybernate.node.leftovers import Leftovers, with_name
from kybernate.node.stores import BELOW_RAM
from kybernate.node.targets import target_of
from kybernate.node.threads import in_thread
from kybernate.node.views import program
from kybernate.node.workloads import Workloads
from kybernate.process.images import Launched, read_launched
from kybernate.process.launching import LAYERS
from kybernate.process.preflight import Connections, dumpable
from kybernate.process.tree import Tree, attach
from kybernate.store.moving import Step

log = logging.getLogger(__name__)

T = TypeVar("T")

_LASTING = (BadInput, Unsupported)
"""Reasons that another copy of the same state would have as well."""


@dataclass(frozen=True, slots=True)
class Back:
    """What brought a workload back into RAM."""

    tier: TierName
    seconds: float
    note: str | None


class NoCopy(WorkloadLost):
    """Every copy of a workload's state was tried, and none can be used."""

    sure = True
    """False: a copy is whole, but its restore failed, which another time it may not."""
    left: str | None = None
    """The snapshot that is there all the same."""


class Parking:
    """See the module. Use it in the loop's thread."""

    def __init__(self, *, gear: Gear, workloads: Workloads) -> None:
        self._gear = gear
        self._workloads = workloads
        workloads.fall_back = self.ended_in_ram
        me = agent_id(gear.state.root)
        self._claims = Claims(gear.stores, by=me)
        self.leftovers = Leftovers(gear, by=me)
        workloads.forget_snapshots = self.leftovers.forget
        self._failed: dict[WorkloadName, str] = {}
        """Snapshots from which a restore failed the last time, whole as they are."""
        self._stuck: dict[WorkloadName, float] = {}
        """Since when workloads are paused that could not be parked for want of room: not tried again in that pause."""
        self.keeps_in_ram: Callable[[WorkloadName], bool] = lambda _: False
        """Whether somebody said that it goes no deeper by itself."""

    # -- down --------------------------------------------------------------------------------------------------------

    def refuse_early(self, entry: Entry) -> None:
        """What can be said before anything is done. Raises Unsupported."""
        if entry.external:
            raise Unsupported(
                f"process {entry.name.removeprefix('pid-')} was not started by Kybernate, so it stays in memory",
                hint="start it with `kybernate run`",
            )

    async def refuse_undumpable(
        self, entry: Entry, connections: Connections | None, *, asked_at: int | None = None
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

    async def park(
        self,
        gpu: GpuGear,
        name: WorkloadName,
        tier: TierName,
        *,
        connections: Connections | None = None,
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
        target = await in_thread(f"look at {name}", lambda: target_of(entry, tree))
        await in_thread(f"open {tier}", lambda: gear.stores.space(tier))
        snapshot = f"{Kind.PARKED}.{name}.{secrets.token_hex(4)}"
        ledger.update(name, snapshot=snapshot, stale=with_name(entry.stale, entry.snapshot))
        await gear.flush()
        try:
            with gear.jobs.begin("park", name, yielding=by_itself) as job:
                report = await in_thread(
                    f"park {name}",
                    lambda: self.with_room(
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
                        ),
                    ),
                )
        except BaseException as e:
            ledger.update(name, snapshot=None, stale=with_name(ledger.entry(name).stale, snapshot))
            self._trouble(tier, e)
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
        gpu.broker.close_door(name)
        gpu.engine.release_parked(name)

    async def move(self, name: WorkloadName, tier: TierName, *, keep: bool = False) -> store.Manifest | None:
        """Copy a parked workload into another tier below RAM and, unless it is to be kept, forget it in the first. In its
        owner task.

        None: it is there already.

        Raises:
            NotFound, Damaged, NoRoom, TierAway, ...: it lies where it lay.
        """
        gear, ledger = self._gear, self._gear.ledger
        entry = ledger.entry(name)
        if entry.tier is tier or entry.snapshot is None:
            return None
        snapshot, source = entry.snapshot, entry.tier
        if tier in entry.also:
            await in_thread(f"look for {snapshot}", lambda: self._claims.still_there(entry, snapshot, tier))
        with gear.jobs.begin("move", name) as job:
            manifest = await self.copy(job, snapshot, source, tier, away=not keep)
        if keep:
            ledger.update(name, also=(*(other for other in entry.also if other is not tier), tier))
            gear.events.record("copied", f"from {source} to {tier}, too", workload=name, data={"snapshot": snapshot})
            return manifest
        also = tuple(other for other in entry.also if other not in (tier, source))
        ledger.update(name, tier=tier, also=also, reason=f"moved from {source} to {tier}")
        await gear.flush()
        await in_thread(f"forget {snapshot}", lambda: self.leftovers.delete(snapshot, source))
        gear.events.record("moved", f"from {source} to {tier}", workload=name, data={"snapshot": snapshot})
        return manifest

    async def copy(
        self, job: Job, snapshot: str, source: TierName, tier: TierName, *, away: bool = False
    ) -> store.Manifest:
        """A snapshot's second copy, in another tier.

        Args:
            away: the first is about to be deleted: from a place of several agents it is claimed before.
        """
        step = Step()
        stores = self._gear.stores

        def work() -> store.Manifest:
            with job.stop.told(step.cancel):
                here = stores.space(source)
                if away:
                    self._claims.take(here, snapshot)
                try:
                    return self.with_room(
                        tier, lambda there: store.copy(here, there, snapshot, progress=job.tell, step=step)
                    )
                except BaseException:
                    if away:
                        self._claims.release([here], snapshot)
                    raise

        try:
            return await in_thread(f"copy {snapshot}", work)
        except BaseException as e:
            self._trouble(tier, e)
            raise

    def with_room(self, tier: TierName, write: Callable[[store.Space], T]) -> T:
        """In a thread: write into a tier; where it is full, once more after its garbage was collected."""
        space = self._gear.stores.space(tier)
        try:
            return write(space)
        except NoRoom:
            with contextlib.suppress(Busy):
                if store.collect(space).freed:
                    return write(space)
            raise

    # -- up ----------------------------------------------------------------------------------------------------------

    async def stage(self, gpu: GpuGear, name: WorkloadName) -> tuple[bool, int]:
        """Read a parked workload's content into the pool, ahead of its resume. In its owner task.

        Returns whether it was there already, and its bytes.

        Raises:
            Conflict: it isn't in the store. NoRoom: the pool is full. Damaged, TierAway, ...
        """
        entry = self._gear.ledger.entry(name)
        if entry.tier is TierName.RAM or entry.snapshot is None:
            return True, 0
        if self.staged(gpu, entry):
            return True, 0
        snapshot = entry.snapshot
        with self._gear.jobs.begin("stage", name, yielding=False) as job:
            errors: list[KybernateError] = []
            for tier in self._order(entry):
                try:
                    report = await in_thread(
                        f"stage {name}",
                        lambda tier=tier: gpu.engine.stage(  # type: ignore[misc]
                            self._gear.stores.space(tier), snapshot, progress=job.tell, cancel=job.stop
                        ),
                    )
                except NotFound:
                    continue
                except (store.TierWiped, store.WrongKey) as e:
                    self._trouble(tier, e)
                    errors.append(e)
                except (NoRoom, store.Cancelled, *_LASTING):
                    raise
                except KybernateError as e:
                    self._trouble(tier, e)
                    errors.append(e)
                else:
                    size = report.bytes_read
                    self._gear.events.record(
                        "staged", f"{format_size(size)} read from {tier} into the pool", workload=name
                    )
                    return False, size
        raise errors[0] if errors else self._gone(entry)

    def staged(self, gpu: GpuGear, entry: Entry) -> bool:
        return entry.snapshot is not None and any(view.snapshot == entry.snapshot for view in gpu.engine.staged())

    async def unpark(self, gpu: GpuGear, name: WorkloadName, *, take_over: bool = False) -> Back:
        """Bring a workload back from the store: it is paused in RAM then. In its owner task.

        Args:
            take_over: also where another agent says that it is bringing it back.

        Raises:
            NoRoom: the pool is too small, also after others went to the disk. BadInput, Unsupported: not on this host, or no
            longer. TierAway and the like: not now. It lies where it lay then.
            Taken: another agent seems to have it. NoCopy: there is no copy that can be used.
        """
        gear, ledger = self._gear, self._gear.ledger
        entry = ledger.entry(name)
        snapshot = entry.snapshot
        if snapshot is None:
            raise NoCopy(
                f"nobody knows where the state of workload {name} is", hint=f"`kybernate stop --remove {name}`"
            )
        began = gear.clock()
        errors: list[tuple[TierName, KybernateError]] = []
        for tier in self._order(entry):
            try:
                with gear.jobs.begin("restore", name) as job:
                    tree = await self._revive(gpu, entry, snapshot, tier, job, take_over=take_over)
            except NotFound:
                continue  # it never was in this tier, or is no more
            except Taken as e:
                if await self._follow(entry):
                    return await self.unpark(gpu, name, take_over=take_over)
                self._tell_failure(entry, tier, e)
                raise
            except (store.TierWiped, store.WrongKey) as e:
                self._trouble(tier, e)
                self._tell_failure(entry, tier, e)
                errors.append((tier, e))
                continue
            except (NoRoom, store.Cancelled, *_LASTING) as e:
                self._tell_failure(entry, tier, e)
                raise
            except KybernateError as e:
                self._trouble(tier, e)
                self._tell_failure(entry, tier, e)
                errors.append((tier, e))
                continue
            launched = await in_thread(f"look at {name}", lambda tree=tree: launched_of(tree))  # type: ignore[misc]
            self._failed.pop(name, None)
            self._workloads.adopt(name, tree)
            ledger.update(
                name,
                tier=TierName.RAM,
                pids=tuple(tree.pids()),
                evicted=gpu.engine.away_bytes(name) or dict(entry.evicted),
                reason=f"restored from {tier}",
                **({} if launched is None else {"argv": launched.argv, "directory": launched.directory}),
            )
            await gear.flush()
            seconds = gear.clock() - began
            note = f"restored from {tier}"
            if errors:
                note += f", since {errors[0][0]} could not be used: {errors[0][1].message}"
            gear.events.record(
                "restored", f"{note}, {format_seconds(seconds)}", workload=name, data={"tier": tier, "seconds": seconds}
            )
            return Back(tier, seconds, note)
        if not errors:
            if await self._follow(entry):
                return await self.unpark(gpu, name, take_over=take_over)
            raise self._gone(entry)
        for _, error in errors:
            if isinstance(error, store.TierAway | store.TierWiped | store.WrongKey | store.TooNew | Busy):
                raise error  # there may be a good copy
        last = errors[-1][1]
        no_copy = NoCopy(
            f"workload {name} can't be brought back from the store: {last.message}",
            hint=f"its snapshot {snapshot} stays there; `kybernate verify {snapshot}`",
        )
        no_copy.left = snapshot
        no_copy.sure = all(isinstance(error, store.Damaged) for _, error in errors)
        raise no_copy from last

    def given_up(self, name: WorkloadName, error: NoCopy) -> bool:
        """Whether a workload may be started anew for this reason: its state is gone or damaged, or its restore failed before.

        What fails once may have failed for want of memory or time.
        """
        snapshot = self._gear.ledger.entry(name).snapshot
        if error.sure or snapshot is None or self._failed.get(name) == snapshot:
            self._failed.pop(name, None)
            return True
        self._failed[name] = snapshot
        return False

    async def _follow(self, entry: Entry) -> bool:
        """The snapshot it lay in has gone: if another agent has had it since and left a later state, that is the workload."""
        but = {entry.snapshot, *entry.stale, *entry.kept}
        found = await in_thread(f"look for {entry.name}", lambda: later(self._gear.stores, entry, but=but))
        if found is None:
            return False
        tier, row = found
        self._gear.ledger.update(
            entry.name,
            snapshot=row.name,
            tier=tier,
            also=(),
            kept=with_name(entry.kept, entry.snapshot),
            evicted=evicted_in(row) or entry.evicted,
            reason=f"found in {tier}, where another agent left it",
        )
        await self._gear.flush()
        self._gear.events.record(
            "found",
            f"a later state lies in {tier}: another agent has had it meanwhile",
            workload=entry.name,
            data={"tier": tier, "snapshot": row.name, "instead": entry.snapshot},
        )
        return True

    def _order(self, entry: Entry) -> list[TierName]:
        """The tiers in which a copy of it may be, the one it lies in first."""
        stores = self._gear.stores
        there = [
            tier for tier in stores.names() if tier is not TierName.NVME or stores.exists(tier) or tier is entry.tier
        ]
        return sorted(there, key=lambda tier: (tier is not entry.tier, BELOW_RAM.index(tier)))

    @staticmethod
    def _gone(entry: Entry) -> NoCopy:
        return NoCopy(
            f"the snapshot {entry.snapshot}, in which workload {entry.name} lies, has gone from every tier",
            hint=f"somebody removed it, or resumed it elsewhere; `kybernate stop --remove {entry.name}` forgets it",
        )

    async def _revive(
        self, gpu: GpuGear, entry: Entry, snapshot: str, tier: TierName, job: Job, *, take_over: bool
    ) -> Tree:
        name = entry.name
        run_directory = self._gear.state.run_directory(name)

        def work() -> Tree:
            space = self._gear.stores.space(tier)
            with contextlib.suppress(NotFound):
                attach(run_directory).remove()  # a leftover: the snapshot is the workload
            gpu.engine.release_parked(name)
            space.manifest(snapshot)  # before a claim of nothing is left there
            claimed = self._claims.of(entry, snapshot, tier, take_over=take_over)
            try:
                return gpu.engine.revive(
                    space, snapshot, name, run_directory=run_directory, progress=job.tell, cancel=job.stop
                )
            except BaseException:
                self._claims.release(claimed, snapshot)
                raise

        return await self.with_pool_room(gpu, name, work)

    async def with_pool_room(self, gpu: GpuGear, name: WorkloadName, work: Callable[[], T]) -> T:
        """Run `work` in a thread; as long as the pool is too small for it, others leave the pool and it is tried again."""
        while True:
            try:
                return await in_thread(f"for {name}", work)
            except NoRoom:
                if not await self.make_pool_room(gpu, name):
                    raise

    def _tell_failure(self, entry: Entry, tier: TierName, error: KybernateError) -> None:
        self._gear.ledger.update(entry.name, reason=f"its restore from {tier} failed: {error.message}")
        self._gear.events.record(
            "restore-failed",
            f"from {tier}: {error.message}",
            workload=entry.name,
            data={"tier": tier, "code": error.code},
        )

    # -- room in the pool --------------------------------------------------------------------------------------------

    async def make_pool_room(self, gpu: GpuGear, asking: WorkloadName) -> bool:
        """Send the least valuable workload that is paused in RAM to the disk. Whether one went.

        Only idle ones are taken, and parking waits for nobody, so this never waits for one that waits for us.
        """
        gear = self._gear
        tier = TierName.NVME
        if not gear.settings.store.demote.pressure or not gear.stores.exists(tier):
            return False
        while True:
            candidates = [
                entry for entry in gear.ledger.entries().values() if entry.name != asking and self.may_go(gpu, entry)
            ]
            chosen = least_valuable(candidates)
            if chosen is None:
                return False
            if await self.demote(gpu, chosen, tier, why=f"went to the disk to make room for {asking} in the host pool"):
                return True

    def may_go(self, gpu: GpuGear, entry: Entry) -> bool:
        """Whether the agent may park it by itself: it is paused in RAM, whole, ours, nobody works on it, and no earlier try
        failed in this pause."""
        return (
            entry.state is WorkloadState.PAUSED
            and entry.tier is TierName.RAM
            and entry.depth is Depth.ZERO
            and not entry.external
            and not gpu.engine.unfinished(entry.name)
            and self._workloads.idle(entry.name)
            and self._stuck.get(entry.name) != entry.since
            and not self.keeps_in_ram(entry.name)
        )

    async def demote(self, gpu: GpuGear, entry: Entry, tier: TierName, *, why: str) -> bool:
        """Park a workload by the agent's own idea. Whether it left; one that can't is not tried again in this pause."""
        try:
            await self._workloads.submit(
                entry.name, "park", lambda: self.park(gpu, entry.name, tier, by_itself=True, why=why), detail=tier
            )
        except KybernateError as e:
            log.warning("workload %s stays in RAM: %s", entry.name, e)
            if not isinstance(e, store.Cancelled | store.TierAway):
                self._stuck[entry.name] = entry.since
            return False
        return True

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

    def _trouble(self, tier: TierName, error: BaseException) -> None:
        if isinstance(error, store.TierAway | store.TierWiped):
            self._gear.stores.troubled(tier, error)


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
    }


def launched_of(tree: Tree) -> Launched | None:
    """In a thread. How a restored workload was started, once; None where that can't be read."""
    with contextlib.suppress(KybernateError):
        return read_launched(tree.run_directory)
    return None
