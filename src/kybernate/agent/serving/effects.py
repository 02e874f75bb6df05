"""What a plan's actions do: victims closed and drained, who comes resumed or started, who leaves paused.

Effects on different workloads run at the same time; each decides again in its workload's owner task. What fails is left alone for a
while, and who waits for it is refused with the reason where another moment won't mend it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from kybernate.agent.gear import Gear
from kybernate.agent.orders.ready import for_everybody
from kybernate.agent.orders.switching import Switching
from kybernate.agent.serving.backoff import Failures
from kybernate.agent.serving.bringup import Coming
from kybernate.agent.serving.build_state import Acting
from kybernate.agent.serving.controller_state import Notes
from kybernate.agent.serving.leases import Gates
from kybernate.agent.serving.observe import Learning
from kybernate.agent.serving.staging import Staging
from kybernate.agent.serving.workload_stats import Memories
from kybernate.agent.workloads.tasks import Tasks
from kybernate.agent.workloads.workloads import Workloads
from kybernate.model.errors import Busy, Conflict, KybernateError, NoRoom
from kybernate.model.types import CHUNK_BYTES, WorkloadName, WorkloadState
from kybernate.policy.node_state import Action, Bring, DropPrefetched, Leave, Phase, Prefetch
from kybernate.settings.specs import Served

log = logging.getLogger(__name__)

_ROOM_S = 5.0
"""How long a resume looks for room where its victims didn't suffice."""
_GRACE_S = 10.0
"""For a program that is to be started in another way."""
_PASSING = (Busy, NoRoom)
"""Failures that another moment may mend: requests stay held."""


class Effects:
    """Use it in the loop's thread."""

    def __init__(
        self,
        *,
        gear: Gear,
        workloads: Workloads,
        switching: Switching,
        coming: Coming,
        gates: Gates,
        memories: Memories,
        staging: Staging,
        tasks: Tasks,
        notes: Notes,
        failures: Failures,
        learning: Learning,
        preempts: Callable[[WorkloadName], bool],
        wake: Callable[[], None],
    ) -> None:
        """`wake`: something has come to an end, so it is time for another look."""
        self._gear = gear
        self._workloads = workloads
        self._switching = switching
        self._coming = coming
        self._gates = gates
        self._memories = memories
        self._staging = staging
        self._tasks = tasks
        self._notes = notes
        self._failures = failures
        self._learning = learning
        self._preempts = preempts
        self._wake = wake

    def begin(self, action: Action) -> None:
        match action:
            case Bring(name=name, victims=victims):
                self._act(name, Phase.COMING, self._bring(action), victims=victims)
            case Leave(name=name):
                self._act(name, Phase.LEAVING, self._leave(action), victims=())
            case Prefetch(name=name):
                self._staging.begin(name)
            case DropPrefetched(name=name):
                self._staging.give_up(name)

    def _act(
        self,
        name: WorkloadName,
        phase: Phase,
        work: Coroutine[Any, Any, None],
        *,
        victims: tuple[WorkloadName, ...],
    ) -> None:
        now = self._gear.clock()
        acting = {victim: Acting(Phase.LEAVING, now) for victim in victims} | {name: Acting(phase, now)}
        self._notes.acting.update(acting)

        async def body() -> None:
            try:
                await work
            finally:
                for each, mine in acting.items():
                    if self._notes.acting.get(each) is mine:  # a victim released early may have another effect by now
                        del self._notes.acting[each]
                self._wake()

        self._tasks.start(body(), name=f"{phase.value} {name}")

    async def _bring(self, action: Bring) -> None:
        name, victims = action.name, action.victims
        entry, served = self._gear.ledger.get(name), self._notes.served.get(name)
        begun = entry is None or entry.ended
        leaving = victims
        if begun:
            self._notes.starting.add(name)
        elif victims and entry is not None and sum(entry.evicted.values()) <= self._staging.free_bytes():
            self._staging.begin(name)  # while its victims' requests end
        try:
            await self._clear(victims, preempt=action.preempt)
            if begun and served is None:
                raise Conflict(f"workload {name} has ended")
            if victims and (gpu := self._gear.gpu) is not None:
                more = gpu.admission.wanted(name) or gpu.vram.said(name)
                if begun or name in self._notes.short or more:
                    await gpu.admission.clear_room(name, victims)  # more than the books say is needed
            if begun and served is not None:
                began = self._gear.clock()
                self._release(victims)  # a start may take minutes: who has given way may be brought back meanwhile
                leaving = ()
                if not await self._coming.start(served, victims=victims, wait_s=_ROOM_S):
                    return
                self._learning.came(name, None, self._gear.clock() - began)
            else:
                why = f"resumed by the policy: {action.why}"
                await self._coming.resume(name, victims=victims, wait_s=_ROOM_S, why=why)
        except Exception as e:
            self._failed(name, e, "come")
        else:
            self._learning.up(name)
            self._wake()
        finally:
            self._notes.starting.discard(name)
            for victim in leaving:
                self.let_run(victim)

    def _release(self, victims: tuple[WorkloadName, ...]) -> None:
        """They have left, or have not: other effects may be begun on them from now on."""
        for victim in victims:
            self.let_run(victim)
            self._notes.acting.pop(victim, None)
        self._wake()

    async def _clear(self, victims: tuple[WorkloadName, ...], *, preempt: bool) -> None:
        """Let victims' requests end before anything is moved. Raises Busy; all of them go on answering then."""

        async def one(victim: WorkloadName) -> None:
            cut = preempt and self._preempts(victim)
            try:
                await self._gates.close(victim, timeout_s=self._notes.settings.drain, preempt=cut)
            except Busy as e:
                self._failures.back_off(victim, e.message)
                raise

        done = await asyncio.gather(*(one(victim) for victim in victims), return_exceptions=True)
        for result in done:
            if isinstance(result, BaseException):
                raise result

    async def _leave(self, action: Leave) -> None:
        name = action.name
        try:
            await self._gates.close(name, timeout_s=self._notes.settings.drain)
            await self._switching.give_back(name, why=f"paused by the policy: {action.why}")
        except Exception as e:
            self._failed(name, e, "leave")
        finally:
            self.let_run(name)

    def let_run(self, name: WorkloadName) -> None:
        """It was closed, and runs on after all."""
        entry = self._gear.ledger.get(name)
        if entry is not None and entry.state is WorkloadState.RUNNING and self._workloads.idle(name):
            self._gates.reopen(name)

    def replace(self, served: Served) -> None:
        """End it, so that it begins with what the file says now."""
        self._act(served.name, Phase.LEAVING, self._replace(served), victims=())

    def sink(self, served: Served) -> None:
        """Let it go to its lowest tier."""
        self._act(served.name, Phase.LEAVING, self._sink(served), victims=())

    async def _replace(self, served: Served) -> None:
        name = served.name
        self._gear.events.record("reconfigured", "ended, since its program was changed in the file", workload=name)
        self._notes.replacing.add(name)
        try:
            await self._gates.close(name, timeout_s=self._notes.settings.drain)
            await self._gear.ending.stop(name, grace_s=_GRACE_S, remove=False)
        except Exception as e:
            self._failed(name, e, "end")
            self.let_run(name)
        else:
            if self._gear.starts.held(name):
                return  # a person stopped it, too
            self._memories.update(name, fingerprint="", done=False)
            self._notes.been_up.discard(name)
        finally:
            self._notes.replacing.discard(name)

    async def _sink(self, served: Served) -> None:
        if not await self._coming.sink(served):
            self._failures.back_off(served.name, f"could not go to {served.lowest_tier}")

    def _failed(self, name: WorkloadName, error: Exception, what: str) -> None:
        if what == "come" and self._gear.starts.held(name):
            return  # a person stopped it meanwhile
        known = isinstance(error, KybernateError)
        text = error.message if isinstance(error, KybernateError) else f"{type(error).__name__}: {error}"
        public = for_everybody(error) if isinstance(error, KybernateError) else "an internal error, which is in the log"
        if not known:
            log.error("workload %s could not %s", name, what, exc_info=error)
        failure = self._failures.back_off(name, text, public=public)
        self._gear.events.record(
            f"{what}-failed", f"{public}; tried again in {failure.pause_s:g} s at the earliest", workload=name
        )
        entry = self._gear.ledger.get(name)
        lasting = not isinstance(error, _PASSING) or entry is None or entry.ended
        if what == "come" and isinstance(error, NoRoom):
            # Its extents would have fit, but not what the driver keeps for it: the next time others make more room.
            numbers = {} if self._gear.gpu is None else self._gear.gpu.vram.numbers()
            self._notes.short[name] = {
                uuid: min(number.unheld + 2 * CHUNK_BYTES, number.capacity) for uuid, number in numbers.items()
            }
        if what == "come" and lasting:
            self._notes.refused.add(name)
            self._gates.refuse(name, message=f"{name} can't be had: {public}", retry_after_s=failure.pause_s)
