"""Who is paused so that others have room in VRAM: one decision at a time, and its execution.

Why no deadlock: a victim is chosen only while its owner is idle, and its pause is in line before anything else can be, so it begins
at once; and a pause never waits for room.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress

from kybernate.agent.records.ledger import Entry, Ledger
from kybernate.agent.vram.arbiter import Fit, Rank
from kybernate.agent.vram.overlapped_eviction import OverlappedEviction
from kybernate.agent.vram.victims import Pauser, VictimPolicy
from kybernate.agent.vram.vram import Vram
from kybernate.agent.vram.waiting import RESERVED_S
from kybernate.agent.workloads.orders import Freed
from kybernate.cuda.driver import Gpu
from kybernate.model.errors import Busy, KybernateError, NoRoom
from kybernate.model.types import GpuUuid, WorkloadName, WorkloadState
from kybernate.policy.node_state import PHASES, Class, Cost, Member, NodeState
from kybernate.policy.settings import PolicySettings
from kybernate.policy.victims import Choice, choose_victims

log = logging.getLogger(__name__)

_DEPARTURE_S = 120.0
"""A promise lapses after so long while its victims leave; released when the resume is over, either way."""
_BUSY_RETRY_S = 2.0
"""A victim that was busy, or found no room in the host pool, is left alone for so long."""
_SAME_COST = Cost(leave=1.0, come=1.0, come_prefetched=1.0)


class Eviction:
    """Use it in the loop's thread."""

    def __init__(
        self,
        *,
        vram: Vram,
        ledger: Ledger,
        clock: Callable[[], float],
        pauser: Pauser,
        policy: Callable[[], VictimPolicy | None],
        find_unmanaged: Callable[[], Awaitable[None]],
    ) -> None:
        """
        Args:
            policy: who chooses victims now; None: nobody knows more than the ledger.
            find_unmanaged: looks for whoever holds VRAM past us, before it is said that nobody can make room.
        """
        self._vram = vram
        self._ledger = ledger
        self._clock = clock
        self._pauser = pauser
        self._policy = policy
        self.find_unmanaged = find_unmanaged
        self._deciding = asyncio.Lock()
        self._refused_until: dict[WorkloadName, float] = {}

    def refused_until(self, name: WorkloadName) -> float:
        """Until when it is left alone, since it could not be paused; infinite where it can't be at all."""
        return self._refused_until.get(name, 0.0)

    def rank(self, name: WorkloadName) -> Rank:
        """Without a policy all are alike."""
        policy = self._policy()
        return (False, 0) if policy is None else policy.rank(name)

    @property
    def by_policy(self) -> bool:
        """A policy chooses, and resumes what the arbiter paused."""
        return self._policy() is not None

    def forget(self, name: WorkloadName) -> None:
        """A workload ended or began anew."""
        self._refused_until.pop(name, None)

    async def pause_all(self, victims: Sequence[WorkloadName], *, requester: WorkloadName) -> list[WorkloadName]:
        """Returns who left."""
        async with self._deciding:
            await asyncio.gather(*(self._evict(victim, requester=requester) for victim in victims))
        entries = self._ledger.entries()
        return [each for each in victims if (entry := entries.get(each)) and entry.state is WorkloadState.PAUSED]

    async def step(
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
            if self._vram.judge(name, gpu, size) is not Fit.LATER:
                self._vram.reserve(name, gpu.uuid, size, for_s=RESERVED_S)
                return None
            if not may_evict:
                return Choice()
            missing = {gpu.uuid: self._vram.missing(name, gpu, size)}
            choice = self._choose(name, missing, min_run_s=min_run_s, preferred=preferred)
            if not choice.victims:
                return choice
            # What they free is its own from the first byte on: others, too, look for room meanwhile.
            spare = max(0, size - missing[gpu.uuid])
            self._vram.reserve(name, gpu.uuid, size, for_s=_DEPARTURE_S, leaving=choice.victims, spare=spare)
            try:
                # gather() makes the tasks now, but their first step comes later: evict() itself checks once more.
                await asyncio.gather(*(self._evict(victim, requester=name) for victim in choice.victims))
            finally:
                self._vram.take(name, gpu.uuid)
            if self._vram.judge(name, gpu, size) is not Fit.LATER:
                self._vram.reserve(name, gpu.uuid, size, for_s=RESERVED_S)
            return choice

    async def begin(
        self, name: WorkloadName, needed: Mapping[GpuUuid, int], preferred: Sequence[WorkloadName]
    ) -> OverlappedEviction | None:
        """Let victims begin to leave where that is all it takes. None: it fits already, or takes more than that.

        Args:
            needed: bytes on each GPU; reserved for the workload until that is released.
            preferred: who shall leave, if that suffices.
        """
        async with self._deciding:
            missing: dict[GpuUuid, int] = {}
            spare: dict[GpuUuid, int] = {}
            for uuid, size in needed.items():
                gpu = self._vram.gpus.get(uuid)
                if gpu is None:
                    return None
                fit = self._vram.judge(name, gpu, size)
                if fit is Fit.LATER:
                    missing[uuid] = self._vram.missing(name, gpu, size)
                elif fit is Fit.NEVER:
                    return None
                spare[uuid] = max(0, size - self._vram.missing(name, gpu, size))
            if not missing:
                return None
            victims = self._choose(name, missing, min_run_s=0.0, preferred=preferred).victims
            if not victims:
                return None
            for uuid, size in needed.items():
                self._vram.reserve(name, uuid, size, for_s=_DEPARTURE_S, leaving=victims, spare=spare.get(uuid, 0))
            overlapped = OverlappedEviction(
                victims=victims,
                resident={victim: self._vram.held_by(victim) for victim in victims},
                spare=spare,
                leave=lambda victim, freed: self._pause(victim, requester=name, freed=freed),
            )
            await asyncio.sleep(0)  # the victims' orders are in line before anybody else chooses
            return overlapped

    async def ease(self, choose: Callable[[], tuple[WorkloadName, str] | None]) -> WorkloadName | None:
        """Nobody can be paused for an allocation just now: pause somebody who waits, in its call.

        Args:
            choose: whom, and why, in words; None: nobody. Asked while nobody else decides.

        Returns who left.
        """
        async with self._deciding:
            chosen = choose()
            if chosen is None:
                return None
            name, why = chosen
            with suppress(Exception):
                await self._pause(name, requester=None, why=why)
                return name
            return None

    def could_come(self, entry: Entry) -> bool:
        """Now, in the place of others where it has to be."""
        sizes = [(gpu, entry.evicted.get(uuid, 0)) for uuid, gpu in self._vram.gpus.items()]
        lacking = {gpu.uuid: self._vram.missing(entry.name, gpu, size) for gpu, size in sizes if size}
        return max(lacking.values(), default=0) <= 0 or bool(self._choose(entry.name, lacking, min_run_s=0.0).victims)

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
        policy = self._policy()
        if policy is not None:
            min_run = 0.0 if min_run_s == 0.0 else None
            return policy.choose(requester=name, needed=missing, min_run_s=min_run)
        return choose_victims(
            self._node_state(), requester=name, needed=missing, settings=PolicySettings(), min_run=min_run_s
        )

    def _suffice(self, victims: Sequence[WorkloadName], missing: Mapping[GpuUuid, int]) -> bool:
        """Whether these can be paused now and free enough."""
        entries = self._ledger.entries()
        for victim in victims:
            entry = entries.get(victim)
            if entry is None or entry.state is not WorkloadState.RUNNING or not self._pauser.idle(victim):
                return False
        return all(
            sum(self._vram.would_free(victim, self._vram.gpus[uuid]) for victim in victims) >= size
            for uuid, size in missing.items()
        )

    async def _evict(self, victim: WorkloadName, *, requester: WorkloadName) -> None:
        """As `_pause`; that it could not leave shows in the next decision."""
        with suppress(Exception):
            await self._pause(victim, requester=requester)

    async def _pause(
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
        try:
            if why is not None:
                await self._pauser.give_way(victim, why=why)
            else:
                await self._pauser.evict(victim, requester=requester, freed=freed)
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

    def _node_state(self) -> NodeState:
        """For as long as nobody has a better one: all are alike, and nothing is known of what their switches cost."""
        now = self._clock()
        members = {}
        for entry in self._ledger.entries().values():
            if entry.ended:
                continue
            refused = self._refused_until.get(entry.name, 0.0)
            idle = self._pauser.idle(entry.name)
            members[entry.name] = Member(
                name=entry.name,
                klass=Class.BATCH,
                priority=0,
                phase=PHASES[entry.state],
                bytes=self._vram.held_by(entry.name),
                cost=_SAME_COST,
                last_use=entry.last_use,
                since=entry.running_since,
                pausable=idle and refused <= now,
                settling=refused != float("inf") and (not idle or refused > now),
            )
        return NodeState(now=now, members=members, capacity={}, free={})
