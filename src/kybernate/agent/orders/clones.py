"""Workloads made of an image."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence

from kybernate.agent.orders.snapshot_catalog import SnapshotCatalog
from kybernate.agent.orders.switching import Switching
from kybernate.agent.records.ledger import ARBITER, Entry, Ledger
from kybernate.agent.tiers.cloning import ImageRestore
from kybernate.agent.tiers.store_discovery import number_in, sizes_in
from kybernate.agent.workloads.launching import left_of
from kybernate.agent.workloads.runtime import GpuRuntime, need_gpu
from kybernate.agent.workloads.starts import Starts
from kybernate.agent.workloads.targets import is_external_name
from kybernate.agent.workloads.workloads import Workloads
from kybernate.model import api
from kybernate.model.caller import Caller
from kybernate.model.errors import BadInput, Conflict, KybernateError, NoRoom
from kybernate.model.types import Backend, WorkloadName, WorkloadState, workload_name

_AT_ONCE = max(2, os.cpu_count() or 2)
"""Clones that are restored at the same time: each keeps a core busy."""


class Clones:
    """Use it in the loop's thread."""

    def __init__(
        self,
        *,
        gpu: GpuRuntime | None,
        ledger: Ledger,
        clock: Callable[[], float],
        starts: Starts,
        workloads: Workloads,
        switching: Switching,
        catalog: SnapshotCatalog,
        image_restore: ImageRestore,
    ) -> None:
        self._gpu = gpu
        self._ledger = ledger
        self._clock = clock
        self._starts = starts
        self._workloads = workloads
        self._switching = switching
        self._catalog = catalog
        self._image_restore = image_restore

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
        ledger = self._ledger
        gpu = need_gpu(self._gpu, so="it takes and restores no snapshots")
        names = _names(wanted)
        tier, manifest = await self._catalog.image(image, caller)
        self._refuse_names(names, caller, by_itself=by_itself)
        if reasons := await self._image_restore.refusals(gpu, image, tier):
            raise BadInput(f"image {image} can't run here: {'; '.join(reasons[:3])}")
        began, now = self._clock(), self._clock()
        self._refuse_names(names, caller, by_itself=by_itself)  # some may be taken by now, and all come or none
        for name in names:
            self._starts.allow(name)
            old = ledger.get(name)
            ledger.add(
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
            async def work() -> str | None:
                await self._image_restore.restore(gpu, name, image, tier, unmanaged=unmanaged, since=now)
                return await self._begin_to_run(name, image, first=number == 0, wait_s=wanted.timeout_s)

            async with turns:
                try:
                    note = await self._workloads.submit(name, "clone", work, detail=(image, tier, wanted))
                except KybernateError as e:
                    return e
                state = ledger.entry(name).state
                return api.CloneView(workload=name, state=state, seconds=self._clock() - began, note=note)

        made = await asyncio.gather(*(one(number, name) for number, name in enumerate(names)))
        if all(isinstance(each, KybernateError) for each in made):
            raise next(each for each in made if isinstance(each, KybernateError))
        clones = [
            each
            if isinstance(each, api.CloneView)
            else api.CloneView(
                workload=name,
                state=WorkloadState.EXITED if (entry := ledger.get(name)) is None else entry.state,
                seconds=self._clock() - began,
                note=each.message,
            )
            for name, each in zip(names, made, strict=True)
        ]
        return api.CloneList(image=image, seconds=self._clock() - began, clones=clones)

    async def _begin_to_run(self, name: WorkloadName, image: str, *, first: bool, wait_s: float) -> str | None:
        """In the clone's owner task. Returns why it isn't running yet, if so."""
        try:
            await self._switching.resume_within(
                name, may_evict=first, wait_s=wait_s if first else 0.0, why=f"cloned from {image}"
            )
        except NoRoom as e:
            return f"waits for room: {e.message}"
        return None

    def _refuse_names(self, names: Sequence[WorkloadName], caller: Caller, *, by_itself: bool) -> None:
        self._starts.refuse()
        for name in names:
            old = self._ledger.get(name)
            if old is not None and not old.ended:
                raise Conflict(f"a workload named {name} is {old.state} already", hint="choose another name")
            if old is not None:
                caller.require_owner(old.uid, f"the ended workload {name}")
            if by_itself:
                self._starts.refuse_by_itself(name)


def _names(wanted: api.CloneRequest) -> Sequence[WorkloadName]:
    texts = [wanted.name] if wanted.count is None else [f"{wanted.name}-{k + 1}" for k in range(wanted.count)]
    names = [workload_name(text) for text in texts]
    if is_external_name(names[0]) or is_external_name(names[-1]):
        raise BadInput(f"{names[0]} names a process that was not started by Kybernate", hint="choose another name")
    return names
