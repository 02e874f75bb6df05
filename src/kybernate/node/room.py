"""Room in VRAM: acts on the arbiter's answers. The broker's Admission, and the room a resume needs.

The broker calls `may_allocate` and `make_room` in threads of its own; deciding and pausing happen in the event loop, one decision
at a time. Room that was made is reserved for the one it was made for, until it takes it or some seconds pass.

Why no deadlock: a victim is chosen only while its owner is idle, and its pause is in line before anything else can be, so it begins
at once; and a pause never waits for room.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Protocol

from kybernate.cuda.broker import Verdict
from kybernate.cuda.driver import Gpu
from kybernate.model.errors import Busy, KybernateError, NoRoom
from kybernate.model.quantities import format_size
from kybernate.model.types import GpuUuid, HostPid, WorkloadName, WorkloadState
from kybernate.node.arbiter import Room
from kybernate.node.auto_resume import AutoResume
from kybernate.node.departure import Departure, Freed
from kybernate.node.events import Events
from kybernate.node.ledger import Entry, Ledger
from kybernate.node.policy.picture import PHASES, Class, Cost, Member, Picture
from kybernate.node.policy.settings import PolicySettings
from kybernate.node.policy.victims import Choice, choose_victims
from kybernate.node.settings import ArbiterSettings, VramSettings
from kybernate.node.vram import Holdings, Vram

log = logging.getLogger(__name__)

_SAY_AGAIN_S = 10.0
_LOOK_S = 0.1
"""Memory given back by a workload is noticed by looking: ten times a second, and only while somebody waits."""
_RESERVED_S = 5.0
"""A promise not taken up within this time lapses; the library asks again within milliseconds."""
_DEPARTURE_S = 120.0
"""Likewise while its victims leave; released when the resume is over, either way."""
_BUSY_RETRY_S = 2.0
"""A victim that was busy, or found no room in the host pool, is left alone for so long."""
_TOUCH_S = 1.0
"""Last use is written at most this often: allocations come by the thousand."""
_SAME_COST = Cost(leave=1.0, come=1.0, come_staged=1.0)


class Workloads(Protocol):
    """What room-making needs of the workloads."""

    def idle(self, name: WorkloadName) -> bool: ...

    async def evict(self, name: WorkloadName, *, requester: WorkloadName | None, freed: Freed | None = None) -> None:
        """Pause it on the arbiter's behalf. Takes its place in line before the first await. `freed` is told, from another
        thread, of its memory as it becomes free."""

    async def bring_back(self, name: WorkloadName) -> None:
        """Resume it on the arbiter's behalf, if it still fits."""


class Chooser(Protocol):
    """A policy that knows more than the ledger."""

    def __call__(self, *, requester: WorkloadName, needed: Mapping[GpuUuid, int], quantum_s: float | None) -> Choice:
        """Whose pause makes room.

        Args:
            quantum_s: 0 for a resume that somebody ordered; None: as it finds right.
        """


class RoomKeeper:
    """See the module. `attach` comes before the broker opens a door."""

    def __init__(
        self,
        *,
        gpus: Sequence[Gpu],
        ledger: Ledger,
        events: Events,
        vram: VramSettings,
        arbiter: ArbiterSettings,
        clock: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.vram = Vram(gpus=gpus, settings=vram, clock=clock)
        self._ledger = ledger
        self._events = events
        self._arbiter = arbiter
        self._clock = clock
        self._loop = loop
        self._deciding = asyncio.Lock()
        self._returning = AutoResume(vram=self.vram, settings=arbiter)
        self._refused_until: dict[WorkloadName, float] = {}
        self._touched: dict[WorkloadName, float] = {}
        self._said_never: dict[WorkloadName, float] = {}
        self._waiting = 0
        self._workloads: Workloads | None = None
        self._watch_process: Callable[[WorkloadName, HostPid], None] | None = None
        self._chooser: Chooser | None = None

    def follow(self, chooser: Chooser) -> None:
        """From now on this one chooses victims, and resumes what was paused by the arbiter."""
        self._chooser = chooser

    def attach(
        self,
        *,
        holdings: Holdings,
        workloads: Workloads,
        watch_process: Callable[[WorkloadName, HostPid], None],
    ) -> None:
        """The ends that are made after this one. `watch_process` is called in the loop for each process that says hello."""
        self.vram.attach(holdings)
        self._workloads = workloads
        self._watch_process = watch_process

    # -- the broker's threads ------------------------------------------------------------------------------------

    def hello(self, *, workload: WorkloadName, pid: HostPid, pid_inside: int) -> None:
        self._loop.call_soon_threadsafe(self._said_hello, workload, pid)

    def may_allocate(self, *, workload: WorkloadName, gpu: Gpu, size: int) -> Verdict:
        """Bookkeeping only; the broker may still find less than this promised and says so itself."""
        room = self.vram.judge(workload, gpu, size)
        if room is Room.NEVER:
            self._loop.call_soon_threadsafe(self._never, workload, gpu, size)
            return Verdict.NEVER
        if self._untouched(workload, self._clock()):  # looked at here, too: the loop need not wake for each allocation
            self._loop.call_soon_threadsafe(self._touch, workload)
        if room is Room.LATER:
            return Verdict.WAIT
        self.vram.take(workload, gpu.uuid)
        return Verdict.GRANT

    def make_room(self, *, workload: WorkloadName, gpu: Gpu, size: int) -> bool:
        """Blocks until `size` bytes may be asked for again. False: never, or not within the wait limit."""
        room = self._make_room_for_allocation(workload, gpu, size)
        return asyncio.run_coroutine_threadsafe(room, self._loop).result()

    # -- the loop's thread ---------------------------------------------------------------------------------------

    def refused_until(self, name: WorkloadName) -> float:
        """Until when it is left alone, since it could not be paused."""
        return self._refused_until.get(name, 0.0)

    async def clear_room(self, name: WorkloadName, victims: Sequence[WorkloadName]) -> list[WorkloadName]:
        """Pause these before a workload is started that will ask for their room. Returns who left."""
        async with self._deciding:
            await asyncio.gather(*(self._evict(victim, requester=name) for victim in victims))
        entries = self._ledger.entries()
        return [each for each in victims if (entry := entries.get(each)) and entry.state is WorkloadState.PAUSED]

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
            gpu = self.vram.gpus.get(uuid)
            if gpu is None:
                raise NoRoom(f"workload {entry.name} needs GPU {uuid}, which this node doesn't have")
            if size > (capacity := self.vram.capacity(gpu)):
                raise NoRoom(
                    f"workload {entry.name} needs {size} bytes on GPU {gpu.index}, which hands out {capacity} at most",
                    hint="raise agent.vram.limit",
                )
            deadline = self._clock() + wait_s
            while True:
                choice = await self._step(entry.name, gpu, size, quantum_s=0.0, may_evict=may_evict, preferred=victims)
                if choice is None:
                    break
                paused += [victim for victim in choice.victims if victim not in paused]
                helpless = choice.wait_s is None and not choice.victims
                # A process that has ended gives its VRAM back a moment after the broker forgot its extents.
                held = self.vram.resident(None, gpu) + self.vram.reserved_for_others(entry.name, gpu)
                coming = size + held <= capacity
                if (helpless and not coming) or self._clock() >= deadline:
                    raise NoRoom(
                        f"workload {entry.name} needs {size} bytes ({format_size(size)}) on GPU {gpu.index}, "
                        f"{max(0, self.vram.free(gpu))} are free and no other workload can be paused to make room",
                        hint="`kybernate ps` shows who holds them; pause or stop one",
                    )
                if choice.wait_s is not None or helpless:
                    await asyncio.sleep(min(choice.wait_s or _LOOK_S, _LOOK_S))
        return paused

    async def begin_room_for_resume(self, entry: Entry, preferred: Sequence[WorkloadName] = ()) -> Departure | None:
        """Let victims begin to leave where that is all it takes, so that the resume can begin at once.

        None: everything fits already, or it takes more than victims that can be paused now; `make_room_for_resume` sees to
        both. The room is reserved for the workload until that is released.

        Args:
            preferred: who shall leave, if that suffices.
        """
        async with self._deciding:
            missing: dict[GpuUuid, int] = {}
            spare: dict[GpuUuid, int] = {}
            for uuid, size in entry.evicted.items():
                gpu = self.vram.gpus.get(uuid)
                if gpu is None:
                    return None
                room = self.vram.judge(entry.name, gpu, size)
                if room is Room.LATER:
                    missing[uuid] = self.vram.missing(entry.name, gpu, size)
                elif room is Room.NEVER:
                    return None
                spare[uuid] = max(0, size - self.vram.missing(entry.name, gpu, size))
            if not missing:
                return None
            victims = self._choose(entry.name, missing, quantum_s=0.0, preferred=preferred).victims
            if not victims:
                return None
            for uuid, size in entry.evicted.items():
                self.vram.reserve(entry.name, uuid, size, for_s=_DEPARTURE_S, leaving=victims, spare=spare.get(uuid, 0))
            departure = Departure(
                victims=victims,
                resident={victim: self.vram.held_by(victim) for victim in victims},
                spare=spare,
                leave=lambda victim, freed: self._leave(victim, requester=entry.name, freed=freed),
            )
            await asyncio.sleep(0)  # the victims' orders are in line before anybody else chooses
            return departure

    def forget(self, name: WorkloadName) -> None:
        """A workload ended or began anew: what was remembered of it is void."""
        self.vram.release(name)
        self._refused_until.pop(name, None)
        self._returning.forget(name)
        self._touched.pop(name, None)
        self._said_never.pop(name, None)

    async def watch(self) -> None:
        """Resume what the arbiter paused and what waits for its recovery, once it fits. Task body; ends by cancellation."""
        assert self._workloads is not None
        while True:
            await asyncio.sleep(_LOOK_S * 2)
            name = self._returning.choose(
                self._ledger.entries().values(),
                now=self._clock(),
                somebody_waits=self._waiting > 0,
                by_policy=self._chooser is not None,
            )
            if name is not None and self._workloads.idle(name):
                try:
                    await self._workloads.bring_back(name)
                except KybernateError as e:
                    log.warning("can't resume workload %s: %s", name, e)
                    self._returning.failed(name, now=self._clock())
                else:
                    self._returning.came_back(name)

    async def _make_room_for_allocation(self, name: WorkloadName, gpu: Gpu, size: int) -> bool:
        waited = 0.0
        self._waiting += 1
        try:
            while waited < self._arbiter.wait_limit:
                began = self._clock()
                entry = self._ledger.get(name)
                if entry is None or entry.ended:
                    return False
                if entry.state is WorkloadState.PAUSING:
                    await asyncio.sleep(_LOOK_S)
                    continue
                if entry.state not in (WorkloadState.RUNNING, WorkloadState.STARTING):
                    return True  # paused while it waited: it asks again when it runs again, and nobody is paused for it now
                if self.vram.judge(name, gpu, size) is Room.NEVER:
                    return False
                choice = await self._step(name, gpu, size, quantum_s=self._arbiter.quantum, may_evict=True)
                if choice is None:
                    return True
                if choice == Choice():
                    break
                await asyncio.sleep(min(choice.wait_s or 0.0, _LOOK_S))
                waited += self._clock() - began
        finally:
            self._waiting -= 1
        self._events.record(
            "out-of-memory",
            f"{format_size(size)} asked for on GPU {gpu.index}: {format_size(max(0, self.vram.free(gpu)))} are free and no "
            "workload could be paused to make room",
            workload=name,
            data={"bytes": size, "free": self.vram.free(gpu), "gpu": gpu.uuid, "waited_s": waited},
        )
        return False

    def _never(self, name: WorkloadName, gpu: Gpu, size: int) -> None:
        """Say so, once in a while: programs try again and again with smaller sizes."""
        now = self._clock()
        if now - self._said_never.get(name, -_SAY_AGAIN_S) < _SAY_AGAIN_S:
            return
        self._said_never[name] = now
        held = self.vram.resident(name, gpu)
        self._events.record(
            "out-of-memory",
            f"{format_size(size)} asked for on GPU {gpu.index} besides {format_size(held)} held: more than the "
            f"{format_size(self.vram.capacity(gpu))} that are handed out there",
            workload=name,
            data={"bytes": size, "held": held, "capacity": self.vram.capacity(gpu), "gpu": gpu.uuid},
        )

    async def _step(
        self,
        name: WorkloadName,
        gpu: Gpu,
        size: int,
        *,
        quantum_s: float,
        may_evict: bool,
        preferred: Sequence[WorkloadName] = (),
    ) -> Choice | None:
        """One decision: None when the room is there and reserved, else what was done or is to be waited for."""
        async with self._deciding:
            if self.vram.judge(name, gpu, size) is not Room.LATER:
                self.vram.reserve(name, gpu.uuid, size, for_s=_RESERVED_S)
                return None
            if not may_evict:
                return Choice()
            missing = {gpu.uuid: self.vram.missing(name, gpu, size)}
            choice = self._choose(name, missing, quantum_s=quantum_s, preferred=preferred)
            if choice.victims:
                # gather() makes the tasks now, but their first step comes later: evict() itself checks once more.
                await asyncio.gather(*(self._evict(victim, requester=name) for victim in choice.victims))
            return choice

    def _choose(
        self,
        name: WorkloadName,
        missing: Mapping[GpuUuid, int],
        *,
        quantum_s: float,
        preferred: Sequence[WorkloadName] = (),
    ) -> Choice:
        """Whom to pause so that what is missing on each GPU becomes free."""
        if preferred and self._suffice(preferred, missing):
            return Choice(victims=tuple(preferred))
        if self._chooser is not None:
            quantum = 0.0 if quantum_s == 0.0 else None
            return self._chooser(requester=name, needed=missing, quantum_s=quantum)
        return choose_victims(
            self._picture(), requester=name, needed=missing, settings=PolicySettings(), quantum=quantum_s
        )

    def _suffice(self, victims: Sequence[WorkloadName], missing: Mapping[GpuUuid, int]) -> bool:
        """Whether these can be paused now and free enough."""
        assert self._workloads is not None
        entries = self._ledger.entries()
        for victim in victims:
            entry = entries.get(victim)
            if entry is None or entry.state is not WorkloadState.RUNNING or not self._workloads.idle(victim):
                return False
        return all(
            sum(self.vram.resident(victim, self.vram.gpus[uuid]) for victim in victims) >= size
            for uuid, size in missing.items()
        )

    async def _evict(self, victim: WorkloadName, *, requester: WorkloadName) -> None:
        """As `_leave`; that it could not leave shows in the next decision."""
        with suppress(Exception):
            await self._leave(victim, requester=requester)

    async def _leave(self, victim: WorkloadName, *, requester: WorkloadName, freed: Freed | None = None) -> None:
        """Pause a victim; one that refuses is left alone for a while, or for good where it can't be paused at all."""
        assert self._workloads is not None
        try:
            await self._workloads.evict(victim, requester=requester, freed=freed)
        except (Busy, NoRoom) as e:  # the host pool, too, has room again once others have come back
            self._refused_until[victim] = self._clock() + _BUSY_RETRY_S
            log.info("workload %s can't make room now: %s", victim, e)
            raise
        except KybernateError as e:
            self._refused_until[victim] = float("inf")
            log.warning("workload %s can't make room: %s", victim, e)
            raise
        except Exception:
            self._refused_until[victim] = float("inf")
            log.exception("workload %s can't make room", victim)
            raise

    def _picture(self) -> Picture:
        """For as long as nobody has a better one: all are alike, and nothing is known of what their switches cost."""
        assert self._workloads is not None
        now = self._clock()
        members = {}
        for entry in self._ledger.entries().values():
            if entry.ended:
                continue
            refused = self._refused_until.get(entry.name, 0.0)
            idle = self._workloads.idle(entry.name)
            members[entry.name] = Member(
                name=entry.name,
                klass=Class.BATCH,
                priority=0,
                phase=PHASES[entry.state],
                bytes=self.vram.held_by(entry.name),
                cost=_SAME_COST,
                last_use=entry.last_use,
                since=entry.running_since,
                pausable=idle and refused <= now,
                settling=refused != float("inf") and (not idle or refused > now),
            )
        return Picture(now=now, members=members, capacity={}, free={})

    def _said_hello(self, name: WorkloadName, pid: HostPid) -> None:
        assert self._watch_process is not None
        self._watch_process(name, pid)
        self._touch(name)

    def _touch(self, name: WorkloadName) -> None:
        now = self._clock()
        if self._untouched(name, now):
            self._touched[name] = now
            self._ledger.update(name, last_use=now)

    def _untouched(self, name: WorkloadName, now: float) -> bool:
        return now - self._touched.get(name, 0.0) >= _TOUCH_S
