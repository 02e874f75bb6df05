"""Who gets room in VRAM: makes it for allocations that wait and for resumes, by the arbiter's answers.

Room that was made is reserved for the one it was made for, until it takes it or some seconds pass. Of workloads that wait for each
other in their allocations one is paused in its call, so that the others can go on (`arbiter.deadlock_victim`); it comes back after
a turn of theirs, if need be in their place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from kybernate.agent.records.ledger import Entry, Ledger
from kybernate.agent.vram.arbiter import Fit
from kybernate.agent.vram.auto_resume import AutoResume
from kybernate.agent.vram.eviction import Eviction
from kybernate.agent.vram.out_of_memory import OutOfMemoryEvents
from kybernate.agent.vram.overlapped_eviction import OverlappedEviction
from kybernate.agent.vram.vram import Vram
from kybernate.agent.vram.waiting import WaitingAllocations
from kybernate.cuda.driver import Gpu
from kybernate.model.errors import NoRoom
from kybernate.model.quantities import format_size
from kybernate.model.types import GpuUuid, WorkloadName, WorkloadState
from kybernate.settings import ArbiterSettings

_LOOK_S = 0.1
"""Memory given back by a workload is noticed by looking: ten times a second, and only while somebody waits."""
_SURE_S = 1.0
"""For so long there must have been nobody who could give way before an allocation fails: a process that has ended gives its VRAM
back a moment after the broker forgot its extents."""
_ASKING = (WorkloadState.STARTING, WorkloadState.RUNNING, WorkloadState.STOPPING)
"""In these a program runs and may need room: also one that does its last things."""
_HOLDING = (WorkloadState.STARTING, WorkloadState.RUNNING, WorkloadState.RESUMING)


class VramAdmission:
    """Use it in the loop's thread."""

    def __init__(
        self,
        *,
        vram: Vram,
        ledger: Ledger,
        clock: Callable[[], float],
        settings: ArbiterSettings,
        eviction: Eviction,
        waiting: WaitingAllocations,
        auto_resume: AutoResume,
        refusals: OutOfMemoryEvents,
    ) -> None:
        self._vram = vram
        self._ledger = ledger
        self._clock = clock
        self._settings = settings
        self._eviction = eviction
        self._waiting = waiting
        self._auto_resume = auto_resume
        self._refusals = refusals

    def refused_until(self, name: WorkloadName) -> float:
        """Until when it is left alone, since it could not be paused."""
        return self._eviction.refused_until(name)

    def wanted(self, name: WorkloadName) -> Mapping[GpuUuid, int]:
        """What one that was paused in an allocation asks for as soon as it runs again, in bytes by GPU."""
        return self._waiting.wanted(name)

    async def clear_room(self, name: WorkloadName, victims: Sequence[WorkloadName]) -> list[WorkloadName]:
        """Pause these before a workload is started that will ask for their room. Returns who left."""
        return await self._eviction.pause_all(victims, requester=name)

    async def make_room_for_resume(
        self, entry: Entry, *, may_evict: bool, wait_s: float, victims: Sequence[WorkloadName] = ()
    ) -> list[WorkloadName]:
        """Until what the workload needs back fits on each of its GPUs; it is reserved for it then.

        Returns whom it paused for that.

        Raises:
            NoRoom: it never will, or not within `wait_s`.
        """
        paused: list[WorkloadName] = []
        for uuid, size in entry.evicted.items():
            gpu = self._vram.gpus.get(uuid)
            if gpu is None:
                raise NoRoom(f"workload {entry.name} needs GPU {uuid}, which this node doesn't have")
            if size > (capacity := self._vram.capacity(gpu)):
                raise NoRoom(
                    f"workload {entry.name} needs {size} bytes on GPU {gpu.index}, which hands out {capacity} at most",
                    hint="raise agent.vram.limit",
                )
            deadline, looked = self._clock() + wait_s, False
            while True:
                choice = await self._eviction.step(
                    entry.name, gpu, size, min_run_s=0.0, may_evict=may_evict, preferred=victims
                )
                if choice is None:
                    break
                paused += [victim for victim in choice.victims if victim not in paused]
                helpless = choice.wait_s is None and not choice.victims
                # A process that has ended gives its VRAM back a moment after the broker forgot its extents.
                held = self._vram.resident(None, gpu) + self._vram.reserved_for_others(entry.name, gpu)
                coming = size + held <= capacity
                if helpless and not looked:
                    looked = True
                    await self._eviction.find_unmanaged()
                    continue
                if (helpless and not coming) or self._clock() >= deadline:
                    raise NoRoom(
                        f"workload {entry.name} needs {size} bytes ({format_size(size)}) on GPU {gpu.index}, "
                        f"{max(0, self._vram.free(gpu))} are free and no other workload can be paused to make room",
                        hint="`kybernate ps` shows who holds them; pause or stop one",
                    )
                if choice.wait_s is not None or helpless:
                    await asyncio.sleep(min(choice.wait_s or _LOOK_S, _LOOK_S))
        return paused

    async def begin_room_for_resume(
        self, entry: Entry, preferred: Sequence[WorkloadName] = ()
    ) -> OverlappedEviction | None:
        """Let victims begin to leave where that is all it takes, so that the resume can begin at once.

        None: everything fits already, or it takes more than victims that can be paused now; `make_room_for_resume` sees to
        both. The room is reserved for the workload until that is released.

        Args:
            preferred: who shall leave, if that suffices.
        """
        return await self._eviction.begin(entry.name, entry.evicted, preferred)

    async def make_room_for_allocation(self, name: WorkloadName, gpu: Gpu, size: int) -> bool:
        """Until `size` bytes may be asked for again. False: never, or not within the wait limit."""
        waited = 0.0
        sure_since: float | None = None
        with self._waiting.while_waiting(name, gpu, size):
            while True:
                began = self._clock()
                entry = self._ledger.get(name)
                if entry is None or entry.ended:
                    return False
                if entry.state is WorkloadState.PAUSING:
                    await asyncio.sleep(_LOOK_S)
                    continue
                if entry.state not in _ASKING:
                    return True  # paused while it waited: it asks again when it runs again, and nobody is paused for it now
                if self._vram.judge(name, gpu, size) is Fit.NEVER:
                    return False
                # Room may have been made for it in the last moment, or while making it took longer than the limit.
                if waited >= self._settings.wait_limit and self._vram.judge(name, gpu, size) is not Fit.FITS:
                    break
                choice = await self._eviction.step(name, gpu, size, min_run_s=self._settings.min_run, may_evict=True)
                if choice is None:
                    self._waiting.satisfied(name)
                    return True
                if choice.victims or not self._waiting.hopeless(name, gpu, size):
                    sure_since = None
                else:
                    if sure_since is None:
                        await self._eviction.find_unmanaged()
                    sure_since = began if sure_since is None else sure_since
                    if self._clock() - sure_since >= _SURE_S:
                        break
                if not choice.victims:
                    await self._ease(entry, gpu, size, waited=waited)
                    await asyncio.sleep(min(choice.wait_s or _LOOK_S, _LOOK_S))
                waited += self._clock() - began
        self._waiting.satisfied(name)
        self._refusals.record_not_freed(
            name,
            gpu,
            size,
            waited_s=waited,
            hopeless=sure_since is not None,
            holders=self._waiting.describe_obstacles(name, gpu),
        )
        return False

    def forget(self, name: WorkloadName) -> None:
        """A workload ended or began anew: what was remembered of it is void."""
        self._vram.release(name)
        self._eviction.forget(name)
        self._auto_resume.forget(name)
        self._waiting.forget(name)

    def changed(self, _old: Entry | None, _new: Entry | None) -> None:
        """Observer of the ledger."""
        self._vram.set_running(entry.name for entry in self._ledger.entries().values() if entry.state in _HOLDING)

    async def _ease(self, entry: Entry, gpu: Gpu, size: int, *, waited: float) -> None:
        """Nobody can be paused for an allocation just now: pause somebody who waits, where only that lets anybody go on."""
        circle = False

        def choose() -> tuple[WorkloadName, str] | None:
            nonlocal circle
            if (name := self._waiting.deadlock_victim()) is not None:
                circle = True
                return name, "paused by the arbiter in an allocation: it and others wait for each other's VRAM"
            if waited >= 2 * self._settings.min_run and self._waiting.outranked(entry, gpu, size):
                # Not at once: they may be idle soon. It would wait no longer than `wait_limit`; paused it comes back in a gap.
                needs = format_size(size)
                return (
                    entry.name,
                    f"paused by the arbiter in an allocation: it waits for {needs}, and others come first",
                )
            return None

        left = await self._eviction.ease(choose)
        if left is not None and circle:
            self._auto_resume.gave_way(left, now=self._clock())
