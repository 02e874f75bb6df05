"""Who is resumed unasked: what the arbiter paused, and what waits for its recovery, once it has fitted for a while; and what was
paused in its call so that others could go on, after a turn of theirs.

`AutoResume` decides only; `AutoResumer` asks it a few times a second and has them resumed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Protocol

from kybernate.agent.records.ledger import ARBITER, RECOVERY, Entry, Ledger
from kybernate.agent.vram.arbiter import Parked, choose_resume
from kybernate.agent.vram.eviction import Eviction
from kybernate.agent.vram.vram import Vram
from kybernate.agent.vram.waiting import WaitingAllocations
from kybernate.model.errors import KybernateError
from kybernate.model.quantities import together
from kybernate.model.types import GpuUuid, WorkloadName, WorkloadState
from kybernate.settings import ArbiterSettings

log = logging.getLogger(__name__)

_LOOK_S = 0.2
_AGAIN_S = 2.0
_AGAIN_MAX_S = 60.0
"""A resume that fails again and again is tried at most so seldom."""


class BringBack(Protocol):
    def __call__(self, name: WorkloadName, *, may_evict: bool) -> Awaitable[None]:
        """Resume it on the arbiter's behalf, if it still fits or, with `may_evict`, others can be paused for it."""


class AutoResume:
    """Remembers since when each workload fits, and what failed. Use it in the loop's thread."""

    def __init__(
        self, *, vram: Vram, settings: ArbiterSettings, wanted: Callable[[WorkloadName], Mapping[GpuUuid, int]]
    ) -> None:
        """`wanted`: what one that was paused in an allocation asks for as soon as it runs, in bytes."""
        self._vram = vram
        self._wanted = wanted
        self._settings = settings
        self._fits_since: dict[WorkloadName, float] = {}
        self._again_after: dict[WorkloadName, float] = {}
        self._gave_way: dict[WorkloadName, float] = {}
        """Since when they are away, or could not come back the last time."""

    def choose(
        self, entries: Iterable[Entry], *, now: float, somebody_waits: bool, by_policy: bool
    ) -> WorkloadName | None:
        """Whom to resume now.

        Args:
            somebody_waits: an allocation waits for room.
            by_policy: a policy resumes what the arbiter paused.
        """
        resumed = (RECOVERY,) if by_policy or not self._settings.auto_resume else (ARBITER, RECOVERY)
        parked = []
        for entry in entries:
            if entry.state is not WorkloadState.PAUSED or entry.paused_by not in resumed:
                self._fits_since.pop(entry.name, None)
                continue
            fits = self._vram.fits(entry.name, together(entry.evicted, self._wanted(entry.name)))
            if not fits:
                self._fits_since.pop(entry.name, None)
            since = self._fits_since.setdefault(entry.name, now) if fits else now
            parked.append(Parked(name=entry.name, paused_at=entry.since, fits=fits, fits_since=since))
        return choose_resume(parked, now=now, settle_s=self._settings.settle, somebody_waits=somebody_waits)

    def gave_way(self, name: WorkloadName, *, now: float) -> None:
        """It was paused in its call, since it and others waited for each other."""
        self._gave_way[name] = now

    def had_others_turn(self, entries: Mapping[WorkloadName, Entry], *, now: float) -> WorkloadName | None:
        """Who gave way and has been away for so long that it may come back in the place of others."""
        for name, since in list(self._gave_way.items()):
            entry = entries.get(name)
            if entry is None or entry.state is not WorkloadState.PAUSED or entry.paused_by != ARBITER:
                del self._gave_way[name]
            elif now - since >= self._settings.min_run:
                return name
        return None

    def failed(self, name: WorkloadName, *, now: float) -> None:
        """Its resume did: it is left alone for a while, longer each time."""
        again = self._again_after[name] = min(2 * self._again_after.get(name, _AGAIN_S / 2), _AGAIN_MAX_S)
        self._fits_since[name] = now + again
        if name in self._gave_way:
            self._gave_way[name] = now

    def came_back(self, name: WorkloadName) -> None:
        self._again_after.pop(name, None)
        self._gave_way.pop(name, None)

    def forget(self, name: WorkloadName) -> None:
        self._fits_since.pop(name, None)
        self._again_after.pop(name, None)
        self._gave_way.pop(name, None)


class AutoResumer:
    """Resumes those whom `AutoResume` chooses. Use it in the loop's thread."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        clock: Callable[[], float],
        choosing: AutoResume,
        waiting: WaitingAllocations,
        eviction: Eviction,
        idle: Callable[[WorkloadName], bool],
        bring_back: BringBack,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._choosing = choosing
        self._waiting = waiting
        self._eviction = eviction
        self._idle = idle
        self._resume = bring_back

    async def run(self) -> None:
        """Resume what the arbiter paused and what waits for its recovery, once it fits. Task body; ends by cancellation."""
        while True:
            await asyncio.sleep(_LOOK_S)
            entries = self._ledger.entries()
            waits, by_policy = self._waiting.somebody_waits(), self._eviction.by_policy
            name = self._choosing.choose(entries.values(), now=self._clock(), somebody_waits=waits, by_policy=by_policy)
            if name is not None:
                await self._bring_back(name, may_evict=False)
            elif name := self._choosing.had_others_turn(entries, now=self._clock()):
                await self._bring_back(name, may_evict=True)

    async def _bring_back(self, name: WorkloadName, *, may_evict: bool) -> None:
        if not self._idle(name) or (may_evict and not self._eviction.could_come(self._ledger.entry(name))):
            return
        try:
            await self._resume(name, may_evict=may_evict)
        except KybernateError as e:
            log.log(logging.INFO if may_evict else logging.WARNING, "can't resume workload %s: %s", name, e)
            self._choosing.failed(name, now=self._clock())
        except Exception:  # it must keep nobody else from coming back
            log.exception("can't resume workload %s", name)
            self._choosing.failed(name, now=self._clock())
        else:
            self._choosing.came_back(name)
