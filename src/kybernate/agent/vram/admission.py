"""Room in VRAM: acts on the arbiter's answers. The broker's Admission, and the room a resume needs.

The broker calls `may_allocate` and `make_room` in threads of its own; deciding and pausing happen in the event loop, one decision
at a time. Room that was made is reserved for the one it was made for, until it takes it or some seconds pass.

Why no deadlock: a victim is chosen only while its owner is idle, and its pause is in line before anything else can be, so it begins
at once; and a pause never waits for room. Of workloads that wait for each other in their allocations one is paused in its call, so
that the others can go on (`arbiter.gives_way`); it comes back after a turn of theirs, if need be in their place.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress

from kybernate.agent.records.events import Events
from kybernate.agent.records.ledger import Entry, Ledger
from kybernate.agent.vram.arbiter import Rank, Room
from kybernate.agent.vram.auto_resume import AutoResume
from kybernate.agent.vram.out_of_memory import OutOfMemory
from kybernate.agent.vram.overlapped_eviction import Departure, Freed
from kybernate.agent.vram.victims import Chooser, Workloads
from kybernate.agent.vram.vram import Books, Vram
from kybernate.agent.vram.waiting import RESERVED_S, Waiting
from kybernate.cuda.broker import Verdict
from kybernate.cuda.driver import Gpu
from kybernate.model.errors import Busy, KybernateError, NoRoom
from kybernate.model.quantities import format_size
from kybernate.model.types import GpuUuid, HostPid, WorkloadName, WorkloadState
from kybernate.policy.node_state import PHASES, Class, Cost, Member, NodeState
from kybernate.policy.settings import PolicySettings
from kybernate.policy.victims import Choice, choose_victims
from kybernate.settings import ArbiterSettings, VramSettings

log = logging.getLogger(__name__)

_LOOK_S = 0.1
"""Memory given back by a workload is noticed by looking: ten times a second, and only while somebody waits."""
_DEPARTURE_S = 120.0
"""A promise lapses after so long while its victims leave; released when the resume is over, either way."""
_SURE_S = 1.0
"""For so long there must have been nobody who could give way before an allocation fails: a process that has ended gives its VRAM
back a moment after the broker forgot its extents."""
_BUSY_RETRY_S = 2.0
"""A victim that was busy, or found no room in the host pool, is left alone for so long."""
_TOUCH_S = 1.0
"""Last use is written at most this often: allocations come by the thousand."""
_ASKING = (WorkloadState.STARTING, WorkloadState.RUNNING, WorkloadState.STOPPING)
"""In these a program runs and may need room: also one that does its last things."""
_HOLDING = (WorkloadState.STARTING, WorkloadState.RUNNING, WorkloadState.RESUMING)
_SAME_COST = Cost(leave=1.0, come=1.0, come_prefetched=1.0)


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
        self._arbiter = arbiter
        self._clock = clock
        self._loop = loop
        self._deciding = asyncio.Lock()
        self._returning = AutoResume(vram=self.vram, settings=arbiter, wanted=self.wanted)
        self._refused_until: dict[WorkloadName, float] = {}
        self._touched: dict[WorkloadName, float] = {}
        self._refusals = OutOfMemory(vram=self.vram, events=events, clock=clock)
        self._waiting = Waiting(
            vram=self.vram,
            ledger=ledger,
            clock=clock,
            idle=lambda name: self._workloads is None or self._workloads.idle(name),
            refused_until=self.refused_until,
        )
        ledger.observe(self._changed)
        self._workloads: Workloads | None = None
        self._watch_process: Callable[[WorkloadName, HostPid], None] | None = None
        self._look: Callable[[], Awaitable[None]] | None = None
        self._chooser: Chooser | None = None

    def follow(self, chooser: Chooser, *, rank: Callable[[WorkloadName], Rank]) -> None:
        """From now on this one chooses victims, and resumes what was paused by the arbiter.

        Args:
            rank: who comes before whom.
        """
        self._chooser = chooser
        self._waiting.rank_by(rank)

    def attach(
        self,
        *,
        books: Books,
        workloads: Workloads,
        watch_process: Callable[[WorkloadName, HostPid], None],
        look: Callable[[], Awaitable[None]],
    ) -> None:
        """The ends that are made after this one. `watch_process` is called in the loop for each process that says hello, `look`
        before it is said that nobody can make room: who holds VRAM past us?"""
        self._ledger.observe(books.changed)
        self.vram.attach(books)
        self._workloads = workloads
        self._watch_process = watch_process
        self._look = look

    # -- the broker's threads ------------------------------------------------------------------------------------

    def hello(self, *, workload: WorkloadName, pid: HostPid, pid_inside: int) -> None:
        self._loop.call_soon_threadsafe(self._said_hello, workload, pid)

    def may_allocate(self, *, workload: WorkloadName, gpu: Gpu, size: int) -> Verdict:
        """Bookkeeping only; the broker may still find less than this promised and says so itself."""
        room = self.vram.judge(workload, gpu, size)
        if room is Room.NEVER:
            self._loop.call_soon_threadsafe(self._refusals.never, workload, gpu, size)
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

    def wanted(self, name: WorkloadName) -> Mapping[GpuUuid, int]:
        """What one that was paused in an allocation asks for as soon as it runs again, in bytes by GPU."""
        return self._waiting.wanted(name)

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
            deadline, looked = self._clock() + wait_s, False
            while True:
                choice = await self._step(entry.name, gpu, size, min_run_s=0.0, may_evict=may_evict, preferred=victims)
                if choice is None:
                    break
                paused += [victim for victim in choice.victims if victim not in paused]
                helpless = choice.wait_s is None and not choice.victims
                # A process that has ended gives its VRAM back a moment after the broker forgot its extents.
                held = self.vram.resident(None, gpu) + self.vram.reserved_for_others(entry.name, gpu)
                coming = size + held <= capacity
                if helpless and not looked:
                    looked = True
                    await self._look_past_us()
                    continue
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
            victims = self._choose(entry.name, missing, min_run_s=0.0, preferred=preferred).victims
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
        self._refusals.forget(name)
        self._waiting.forget(name)

    async def watch(self) -> None:
        """Resume what the arbiter paused and what waits for its recovery, once it fits. Task body; ends by cancellation."""
        assert self._workloads is not None
        while True:
            await asyncio.sleep(_LOOK_S * 2)
            entries = self._ledger.entries()
            waits, by_policy = self._waiting.anybody(), self._chooser is not None
            name = self._returning.choose(
                entries.values(), now=self._clock(), somebody_waits=waits, by_policy=by_policy
            )
            if name is not None:
                await self._bring_back(name, may_evict=False)
            elif name := self._returning.had_others_turn(entries, now=self._clock()):
                await self._bring_back(name, may_evict=True)

    def _could_come(self, entry: Entry) -> bool:
        """Now, in the place of others where it has to be."""
        sizes = [(gpu, entry.evicted.get(uuid, 0)) for uuid, gpu in self.vram.gpus.items()]
        lacking = {gpu.uuid: self.vram.missing(entry.name, gpu, size) for gpu, size in sizes if size}
        return max(lacking.values(), default=0) <= 0 or bool(self._choose(entry.name, lacking, min_run_s=0.0).victims)

    async def _bring_back(self, name: WorkloadName, *, may_evict: bool) -> None:
        assert self._workloads is not None
        if not self._workloads.idle(name) or (may_evict and not self._could_come(self._ledger.entry(name))):
            return
        try:
            await self._workloads.bring_back(name, may_evict=may_evict)
        except KybernateError as e:
            log.log(logging.INFO if may_evict else logging.WARNING, "can't resume workload %s: %s", name, e)
            self._returning.failed(name, now=self._clock())
        except Exception:  # it must keep nobody else from coming back
            log.exception("can't resume workload %s", name)
            self._returning.failed(name, now=self._clock())
        else:
            self._returning.came_back(name)

    async def _make_room_for_allocation(self, name: WorkloadName, gpu: Gpu, size: int) -> bool:
        waited = 0.0
        sure_since: float | None = None
        with self._waiting.asks(name, gpu, size):
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
                if self.vram.judge(name, gpu, size) is Room.NEVER:
                    return False
                # Room may have been made for it in the last moment, or while making it took longer than the limit.
                if waited >= self._arbiter.wait_limit and self.vram.judge(name, gpu, size) is not Room.FITS:
                    break
                choice = await self._step(name, gpu, size, min_run_s=self._arbiter.min_run, may_evict=True)
                if choice is None:
                    self._waiting.got(name)
                    return True
                if choice.victims or not self._waiting.hopeless(name, gpu, size):
                    sure_since = None
                else:
                    if sure_since is None:
                        await self._look_past_us()
                    sure_since = began if sure_since is None else sure_since
                    if self._clock() - sure_since >= _SURE_S:
                        break
                if not choice.victims:
                    await self._ease(entry, gpu, size, waited=waited)
                    await asyncio.sleep(min(choice.wait_s or _LOOK_S, _LOOK_S))
                waited += self._clock() - began
        self._waiting.got(name)
        self._refusals.in_vain(
            name,
            gpu,
            size,
            waited_s=waited,
            hopeless=sure_since is not None,
            holders=self._waiting.in_the_way(name, gpu),
        )
        return False

    async def _ease(self, entry: Entry, gpu: Gpu, size: int, *, waited: float) -> None:
        """Nobody can be paused for an allocation just now: pause somebody who waits, where only that lets anybody go on."""
        async with self._deciding:
            name = self._waiting.gives_way()
            why = "paused by the arbiter in an allocation: it and others wait for each other's VRAM"
            circle = name is not None
            if not circle and waited >= 2 * self._arbiter.min_run and self._waiting.outranked(entry, gpu, size):
                # Not at once: they may be idle soon. It would wait no longer than `wait_limit`; paused it comes back in a gap.
                name = entry.name
                why = f"paused by the arbiter in an allocation: it waits for {format_size(size)}, and others come first"
            if name is None:
                return
            with suppress(Exception):
                await self._leave(name, requester=None, why=why)
                if circle:
                    self._returning.gave_way(name, now=self._clock())

    async def _step(
        self,
        name: WorkloadName,
        gpu: Gpu,
        size: int,
        *,
        min_run_s: float,
        may_evict: bool,
        preferred: Sequence[WorkloadName] = (),
    ) -> Choice | None:
        """One decision: None when the room is there and reserved, else what was done or is to be waited for."""
        async with self._deciding:
            if self.vram.judge(name, gpu, size) is not Room.LATER:
                self.vram.reserve(name, gpu.uuid, size, for_s=RESERVED_S)
                return None
            if not may_evict:
                return Choice()
            missing = {gpu.uuid: self.vram.missing(name, gpu, size)}
            choice = self._choose(name, missing, min_run_s=min_run_s, preferred=preferred)
            if not choice.victims:
                return choice
            # What they free is its own from the first byte on: others, too, look for room meanwhile.
            spare = max(0, size - missing[gpu.uuid])
            self.vram.reserve(name, gpu.uuid, size, for_s=_DEPARTURE_S, leaving=choice.victims, spare=spare)
            try:
                # gather() makes the tasks now, but their first step comes later: evict() itself checks once more.
                await asyncio.gather(*(self._evict(victim, requester=name) for victim in choice.victims))
            finally:
                self.vram.take(name, gpu.uuid)
            if self.vram.judge(name, gpu, size) is not Room.LATER:
                self.vram.reserve(name, gpu.uuid, size, for_s=RESERVED_S)
            return choice

    async def _look_past_us(self) -> None:
        """Nobody can make room, as far as is known: somebody may hold VRAM that isn't in the books yet."""
        if self._look is not None:
            await self._look()

    def _choose(
        self,
        name: WorkloadName,
        missing: Mapping[GpuUuid, int],
        *,
        min_run_s: float,
        preferred: Sequence[WorkloadName] = (),
    ) -> Choice:
        """Whom to pause so that what is missing on each GPU becomes free."""
        if preferred and self._suffice(preferred, missing):
            return Choice(victims=tuple(preferred))
        if self._chooser is not None:
            min_run = 0.0 if min_run_s == 0.0 else None
            return self._chooser(requester=name, needed=missing, min_run_s=min_run)
        return choose_victims(
            self._state(), requester=name, needed=missing, settings=PolicySettings(), min_run=min_run_s
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
            sum(self.vram.would_free(victim, self.vram.gpus[uuid]) for victim in victims) >= size
            for uuid, size in missing.items()
        )

    async def _evict(self, victim: WorkloadName, *, requester: WorkloadName) -> None:
        """As `_leave`; that it could not leave shows in the next decision."""
        with suppress(Exception):
            await self._leave(victim, requester=requester)

    async def _leave(
        self,
        victim: WorkloadName,
        *,
        requester: WorkloadName | None,
        freed: Freed | None = None,
        why: str | None = None,
    ) -> None:
        """Pause a victim; one that refuses is left alone for a while, or for good where it can't be paused at all.

        Args:
            why: of one that waits for room itself, and is paused in its call.
        """
        assert self._workloads is not None
        try:
            if why is not None:
                await self._workloads.give_way(victim, why=why)
            else:
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

    def _state(self) -> NodeState:
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
        return NodeState(now=now, members=members, capacity={}, free={})

    def _changed(self, _old: Entry | None, _new: Entry | None) -> None:
        """Observer of the ledger."""
        self.vram.runs(entry.name for entry in self._ledger.entries().values() if entry.state in _HOLDING)

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
