"""Workloads on their way back from below RAM: content and processes restored, paused; an ordinary resume follows.

Each step runs in the workload's owner task. The tier it lies in is tried first, then every other that may have a copy; each some
times, where it isn't the copy that is at fault. A workload is lost only when every copy is gone, or was read and found damaged:
one that is sound stays, whatever becomes of its restores. See parking.py for the order of what is durable when.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from kybernate import store
from kybernate.agent.records.events import Events
from kybernate.agent.records.jobs import Job, Jobs
from kybernate.agent.records.ledger import Changes, Entry, Ledger
from kybernate.agent.tiers.claims import Claims, Taken
from kybernate.agent.tiers.pool_eviction import PoolEviction
from kybernate.agent.tiers.stale_snapshots import with_name
from kybernate.agent.tiers.store_discovery import evicted_in, labels_in, later, sizes_in
from kybernate.agent.tiers.stores import BELOW_RAM, Stores
from kybernate.agent.workloads.runtime import GpuRuntime
from kybernate.agent.workloads.starting import NoCopy
from kybernate.agent.workloads.threads import in_thread
from kybernate.agent.workloads.workloads import Workloads
from kybernate.model.errors import BadInput, Busy, Cancelled, KybernateError, NoRoom, NotFound, Unsupported
from kybernate.model.quantities import format_seconds, format_size, together
from kybernate.model.types import TierName, WorkloadName
from kybernate.process.images import Launched, read_launched
from kybernate.process.tree import Tree, attach

_LASTING = (BadInput, Unsupported)
"""Reasons that another copy of the same state would have as well."""
_ATTEMPTS = 3
_PAUSE_S = 0.5
"""After the first attempt that failed; twice as long after the next."""
_NOT_AGAIN = (store.Damaged, store.TierAway, store.TooNew, Busy)
"""What the same copy would say at once again. Anything else may pass: want of memory, or of time."""
_Errors = list[tuple[TierName, KybernateError]]


@dataclass(frozen=True, slots=True)
class Restored:
    """What brought a workload back into RAM."""

    tier: TierName
    seconds: float
    note: str | None


class Unparking:
    """See the module. Use it in the loop's thread."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        events: Events,
        clock: Callable[[], float],
        jobs: Jobs,
        stores: Stores,
        workloads: Workloads,
        claims: Claims,
        pool_eviction: PoolEviction,
    ) -> None:
        self._ledger = ledger
        self._events = events
        self._clock = clock
        self._jobs = jobs
        self._stores = stores
        self._workloads = workloads
        self._claims = claims
        self._pool_eviction = pool_eviction

    async def prefetch(self, gpu: GpuRuntime, name: WorkloadName, *, by_person: bool) -> tuple[bool, int]:
        """Read a parked workload's content into the pool, ahead of its resume. In its owner task.

        Args:
            by_person: by a person, so that the agent doesn't give it up for something else.

        Returns whether it was there already, and its bytes.

        Raises:
            Conflict: it isn't in the store. NoRoom: the pool is full. Damaged, TierAway, ...
        """
        entry = self._ledger.entry(name)
        if entry.tier is TierName.RAM or entry.snapshot is None:
            return True, 0
        if self.is_prefetched(gpu, entry):
            return True, 0
        snapshot = entry.snapshot
        with self._jobs.begin("stage", name, by_person=by_person) as job:
            errors: list[KybernateError] = []
            for tier in self._order(entry):
                try:
                    report = await in_thread(
                        f"stage {name}",
                        lambda tier=tier: gpu.engine.stage(  # type: ignore[misc]
                            self._stores.space(tier), snapshot, progress=job.tell, cancel=job.stop
                        ),
                    )
                except NotFound:
                    continue
                except (store.TierRefused, store.TierWiped, store.WrongKey) as e:
                    self._stores.trouble(tier, e)
                    errors.append(e)
                except (NoRoom, Cancelled, *_LASTING):
                    raise
                except KybernateError as e:
                    self._stores.trouble(tier, e)
                    errors.append(e)
                else:
                    size = report.bytes_read
                    self._events.record("staged", f"{format_size(size)} read from {tier} into the pool", workload=name)
                    return False, size
        raise errors[0] if errors else self._gone(entry)

    def is_prefetched(self, gpu: GpuRuntime, entry: Entry) -> bool:
        return entry.snapshot is not None and any(view.snapshot == entry.snapshot for view in gpu.engine.staged())

    async def unpark(self, gpu: GpuRuntime, name: WorkloadName, *, take_over: bool = False) -> Restored:
        """Bring a workload back from the store: it is paused in RAM then. In its owner task.

        Args:
            take_over: also where another agent says that it is bringing it back.

        Raises:
            NoRoom: the pool is too small, also after others went to the disk. BadInput, Unsupported: not on this host, or no
            longer. TierAway and the like: not now. Busy: so, too, or several restores of a sound copy failed. It lies where it lay.
            Taken: another agent seems to have it. NoCopy: every copy is gone or damaged.
        """
        entry = self._ledger.entry(name)
        snapshot = entry.snapshot
        if snapshot is None:
            raise NoCopy(
                f"nobody knows where the state of workload {name} is", hint=f"`kybernate stop --remove {name}`"
            )
        began = self._clock()
        errors: _Errors = []
        for tier in self._order(entry):
            try:
                tree = await self._revive_some_times(gpu, entry, snapshot, tier, errors, take_over=take_over)
            except Taken as e:
                if await self._follow(entry):
                    return await self.unpark(gpu, name, take_over=take_over)
                self._tell_failure(entry, tier, e)
                raise
            if tree is not None:
                return await self._came_back(gpu, entry, tier, tree, errors, began=began)
        if not errors:
            if await self._follow(entry):
                return await self.unpark(gpu, name, take_over=take_over)
            raise self._gone(entry)
        raise self._why_not(entry, snapshot, errors)

    async def _revive_some_times(
        self, gpu: GpuRuntime, entry: Entry, snapshot: str, tier: TierName, errors: _Errors, *, take_over: bool
    ) -> Tree | None:
        """From one tier. None: not from there; it has no copy, or `errors` says why.

        Raises:
            Taken, NoRoom, Cancelled, BadInput, Unsupported: nor would it from another.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with self._jobs.begin("restore", entry.name) as job:
                    return await self._revive(gpu, entry, snapshot, tier, job, take_over=take_over)
            except NotFound:
                return None  # it never was in this tier, or is no more
            except Taken:
                raise
            except (store.TierRefused, store.TierWiped, store.WrongKey) as e:
                self._stores.trouble(tier, e)
                self._tell_failure(entry, tier, e)
                errors.append((tier, e))
                return None
            except (NoRoom, Cancelled, *_LASTING) as e:
                self._tell_failure(entry, tier, e)
                raise
            except KybernateError as e:
                self._stores.trouble(tier, e)
                self._tell_failure(entry, tier, e)
                if attempt == _ATTEMPTS or isinstance(e, _NOT_AGAIN):
                    errors.append((tier, e))
                    return None
            await asyncio.sleep(_PAUSE_S * attempt)
        return None

    async def _came_back(
        self, gpu: GpuRuntime, entry: Entry, tier: TierName, tree: Tree, errors: _Errors, *, began: float
    ) -> Restored:
        name = entry.name
        launched = await in_thread(f"look at {name}", lambda: launched_of(tree))
        self._workloads.adopt(name, tree)
        changes: Changes = {
            "tier": TierName.RAM,
            "pids": tuple(tree.pids()),
            "evicted": together(gpu.engine.away_bytes(name), entry.unmanaged) or dict(entry.evicted),
            "reason": f"restored from {tier}",
        }
        if launched is not None:
            changes |= {"argv": launched.argv, "directory": launched.directory}
        self._ledger.update(name, **changes)
        await self._ledger.flush()
        seconds = self._clock() - began
        note = f"restored from {tier}"
        if errors:
            note += f", since {errors[0][0]} could not be used: {errors[0][1].message}"
        self._events.record(
            "restored", f"{note}, {format_seconds(seconds)}", workload=name, data={"tier": tier, "seconds": seconds}
        )
        return Restored(tier, seconds, note)

    @staticmethod
    def _why_not(entry: Entry, snapshot: str, errors: _Errors) -> KybernateError:
        """NoCopy where every copy was read and is damaged; else what to do about one that isn't."""
        for _, error in errors:
            if isinstance(error, store.TierAway | store.TierWiped | store.WrongKey | store.TooNew | Busy):
                return error  # there may be a good copy
        for tier, error in errors:
            if not isinstance(error, store.Damaged):
                not_now = Busy(
                    f"workload {entry.name} could not be brought back, tried {_ATTEMPTS} times: {error.message}",
                    hint=f"its snapshot {snapshot} stays in {tier}: try again; `kybernate stop --remove {entry.name}` gives it up",
                )
                not_now.__cause__ = error
                return not_now
        last = errors[-1][1]
        no_copy = NoCopy(
            f"workload {entry.name} can't be brought back from the store: {last.message}",
            hint=f"its snapshot {snapshot} stays there; `kybernate verify {snapshot}`",
            left=snapshot,
        )
        no_copy.__cause__ = last
        return no_copy

    async def _follow(self, entry: Entry) -> bool:
        """The snapshot it lay in has gone: if another agent has had it since and left a later state, that is the workload."""
        but = {entry.snapshot, *entry.stale, *entry.kept}
        found = await in_thread(f"look for {entry.name}", lambda: later(self._stores, entry, but=but))
        if found is None:
            return False
        tier, row = found
        self._ledger.update(
            entry.name,
            snapshot=row.name,
            tier=tier,
            also=(),
            kept=with_name(entry.kept, entry.snapshot),
            evicted=evicted_in(row) or entry.evicted,
            unmanaged=sizes_in(labels_in(row), "unmanaged"),
            reason=f"found in {tier}, where another agent left it",
        )
        await self._ledger.flush()
        self._events.record(
            "found",
            f"a later state lies in {tier}: another agent has had it meanwhile",
            workload=entry.name,
            data={"tier": tier, "snapshot": row.name, "instead": entry.snapshot},
        )
        return True

    def _order(self, entry: Entry) -> list[TierName]:
        """The tiers in which a copy of it may be, the one it lies in first."""
        stores = self._stores
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
        self, gpu: GpuRuntime, entry: Entry, snapshot: str, tier: TierName, job: Job, *, take_over: bool
    ) -> Tree:
        name = entry.name
        run_directory = self._workloads.run_directory(name)

        def work() -> Tree:
            space = self._stores.space(tier)
            with contextlib.suppress(NotFound):
                attach(run_directory).remove()  # a leftover: the snapshot is the workload
            gpu.engine.forget(name)
            space.manifest(snapshot)  # before a claim of nothing is left there
            claimed = self._claims.of(entry, snapshot, tier, take_over=take_over)
            try:
                return gpu.engine.revive(
                    space, snapshot, name, run_directory=run_directory, progress=job.tell, cancel=job.stop
                )
            except BaseException:
                self._claims.release(claimed, snapshot)
                raise

        return await self._pool_eviction.with_room(name, work)

    def _tell_failure(self, entry: Entry, tier: TierName, error: KybernateError) -> None:
        self._ledger.update(entry.name, reason=f"its restore from {tier} failed: {error.message}")
        self._events.record(
            "restore-failed",
            f"from {tier}: {error.message}",
            workload=entry.name,
            data={"tier": tier, "code": error.code},
        )


def launched_of(tree: Tree) -> Launched | None:
    """In a thread. How a restored workload was started, once; None where that can't be read."""
    with contextlib.suppress(KybernateError):
        return read_launched(tree.run_directory)
    return None
