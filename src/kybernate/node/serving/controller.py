"""The one task that decides: it makes a picture, asks the policy, and begins what the plan says.

A plan is advice. Each effect decides again in its workload's owner task, where reading and changing are one; effects on different
workloads run at the same time, and the picture shows them as coming or leaving meanwhile. What fails is left alone for a while,
longer each time, and says why.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any

from kybernate.model.errors import Busy, Conflict, KybernateError, NoRoom
from kybernate.model.quantities import format_size
from kybernate.model.types import CHUNK_BYTES, Backend, GpuUuid, TierName, WorkloadName, WorkloadState
from kybernate.node.gear import Gear
from kybernate.node.ledger import USER, Entry
from kybernate.node.policy.costs import Direction
from kybernate.node.policy.picture import Action, Bring, Class, Leave, Member, Phase, Picture, Plan, Stage, Unstage
from kybernate.node.policy.registry import Policy, policy_named
from kybernate.node.policy.settings import PolicySettings
from kybernate.node.policy.victims import Choice, choose_victims, fits_at_all
from kybernate.node.serving.accounts import Accounts, Holding
from kybernate.node.serving.coming import Coming
from kybernate.node.serving.gates import Gates
from kybernate.node.serving.hints import VISIBLE, hinted
from kybernate.node.serving.loads import Loads
from kybernate.node.serving.memory import Memories
from kybernate.node.serving.picturing import Acting, Seen, member_of
from kybernate.node.serving.reasons import Failed
from kybernate.node.serving.specs import Kind, Served
from kybernate.node.serving.staging import Staging
from kybernate.node.settings import Restart, ServingSettings
from kybernate.node.switching import Switching
from kybernate.node.tasks import Tasks
from kybernate.node.workloads import STOPPED, Workloads

log = logging.getLogger(__name__)

_LOOK_S = 1.0
"""At least so often: memory that is given back, and time itself, tell nobody."""
_APART_S = 0.01
"""Between two looks, so that a thousand requests a second are not a thousand plans."""
_AGAIN_S = 1.0
_AGAIN_MOST_S = 60.0
_STEADY_S = 60.0
"""Who failed so long ago begins with a short pause again."""
_ROOM_S = 5.0
"""How long a resume looks for room where its victims didn't suffice."""
_GRACE_S = 10.0
"""For a program that is to be started in another way."""
_PASSING = (Busy, NoRoom)
"""Failures that another moment may mend: requests stay held."""


@dataclass(frozen=True, slots=True)
class _Failure:
    until: float
    pause_s: float
    reason: str


class Controller:
    """`run` is a task's body; everything else is for the loop's thread."""

    def __init__(
        self,
        *,
        gear: Gear,
        workloads: Workloads,
        switching: Switching,
        coming: Coming,
        gates: Gates,
        loads: Loads,
        memories: Memories,
        accounts: Accounts,
        staging: Staging,
        tasks: Tasks,
    ) -> None:
        self._gear = gear
        self._workloads = workloads
        self._switching = switching
        self._coming = coming
        self._gates = gates
        self._loads = loads
        self._memories = memories
        self._accounts = accounts
        self._staging = staging
        self._tasks = tasks
        self._visible = os.environ.get(VISIBLE)
        self._woken = asyncio.Event()
        self._settings = ServingSettings()
        self._numbers = PolicySettings()
        self._policy: Policy = policy_named(self._settings.policy)
        self._acting: dict[WorkloadName, Acting] = {}
        self._failures: dict[WorkloadName, _Failure] = {}
        self._asked_for: set[WorkloadName] = set()
        self._been_up: set[WorkloadName] = set()
        self._replacing: set[WorkloadName] = set()
        self._stopped = False
        self._refused: set[WorkloadName] = set()
        """Those of whom the workers were told that they can't be had, because of a failure."""
        self._by_order: set[WorkloadName] = set()
        """Refused since an order paused them."""
        self._short: dict[WorkloadName, dict[GpuUuid, int]] = {}
        """How much room was too little for a resume, and a little more."""
        self.pardoned: Callable[[WorkloadName], None] = lambda _: None
        """Tells the workers that it may be asked for again."""
        self.served: Mapping[WorkloadName, Served] = {}
        self.starting: set[WorkloadName] = set()
        """Begun from nothing: `Coming.start` itself says when it may be asked."""
        self.plan = Plan()
        self.picture: Picture | None = None

    # -- from outside ------------------------------------------------------------------------------------------------

    def configure(self, served: Mapping[WorkloadName, Served], settings: ServingSettings) -> None:
        self.served = served
        self._settings, self._numbers = settings, settings.numbers()
        self._policy = policy_named(settings.policy)
        self._failures.clear()  # whoever changed the file may have mended it
        self.wake()

    def wake(self) -> None:
        self._woken.set()

    def asked_for(self, name: WorkloadName) -> None:
        """A person ordered its resume, or its start: it shall run until somebody pauses it."""
        self._asked_for.add(name)
        self._failures.pop(name, None)
        if self._memories.of(name).done:
            self._memories.update(name, done=False)
        self.wake()

    def stop(self) -> None:
        """The agent goes down: nothing is begun any more."""
        self._stopped = True

    def take_over(self) -> None:
        """After the recovery: what lives was up before, and a job that ended while no agent ran has ended."""
        for name, served in self.served.items():
            entry = self._gear.ledger.get(name)
            if entry is None:
                continue
            if not entry.ended:
                self._been_up.add(name)
            elif served.kind is Kind.JOB and self._memories.of(name).fingerprint:
                self._job_ended(served, entry, by_order=entry.reason.startswith(STOPPED))

    def up(self, name: WorkloadName) -> None:
        """It may be asked, or computes."""
        self._been_up.add(name)
        if held := self._resident(name):
            self._memories.update(name, needs=dict(held))
        self.wake()

    def changed(self, old: Entry | None, new: Entry | None) -> None:
        """Observer of the ledger."""
        self._count(self._gear.clock())
        if new is not None:
            self._learn(old, new)
            if new.state is not WorkloadState.RUNNING and new.state is not WorkloadState.RESUMING:
                paused_again = old is not None and old.state in (WorkloadState.RUNNING, WorkloadState.PAUSING)
                if paused_again and new.state in (WorkloadState.PAUSED, WorkloadState.EXITED):
                    self._asked_for.discard(new.name)
        self.wake()

    def reason(self, name: WorkloadName) -> str:
        """Why it waits, in words; empty when there is nothing to say."""
        failure = self._failures.get(name)
        if failure is not None and failure.until > self._gear.clock():
            return failure.reason
        return self.plan.reasons.get(name, "")

    def failed(self, name: WorkloadName) -> Failed | None:
        failure = self._failures.get(name)
        return None if failure is None else Failed(failure.until - failure.pause_s, failure.reason)

    def choose(self, *, requester: WorkloadName, needed: Mapping[GpuUuid, int], quantum_s: float | None) -> Choice:
        """Victims for an allocation or an ordered resume: see `room.Chooser`."""
        return choose_victims(
            self.look(), requester=requester, needed=needed, settings=self._numbers, quantum=quantum_s
        )

    def preempts(self, name: WorkloadName) -> bool:
        """Whether its requests in flight may be cut off for others."""
        served = self.served.get(name)
        return served is not None and served.klass in self._numbers.preempt

    def preview(self, asking: list[WorkloadName]) -> tuple[Picture, Plan, dict[WorkloadName, str]]:
        """What would be done now, were there a request for each of these; and whose would be refused, with which words."""
        picture = self.look()
        now = picture.now
        members = dict(picture.members)
        refused = {name: refusal.message for name in asking if (refusal := self._gates.refusal(name)) is not None}
        for name in asking:
            if name in refused:
                continue
            member = members[name]
            oldest = now if member.oldest_wait is None else member.oldest_wait
            members[name] = replace(member, waiting=member.waiting + 1, oldest_wait=oldest, pinned=False)
        picture = replace(picture, members=members)
        return picture, self._policy(picture, self._numbers), refused

    # -- looking -----------------------------------------------------------------------------------------------------

    def look(self) -> Picture:
        now = self._gear.clock()
        gpu = self._gear.gpu
        numbers = {} if gpu is None else gpu.room.vram.numbers()
        members = {name: self._member(name, list(numbers), now) for name in self._names()}
        free: dict[GpuUuid, int] = {}
        for uuid, number in numbers.items():
            promised = dict(number.reserved)
            for member in members.values():
                if member.phase is Phase.COMING:
                    left = member.bytes.get(uuid, 0) - self._resident(member.name).get(uuid, 0)
                    promised[member.name] = max(promised.get(member.name, 0), left)
            free[uuid] = number.unheld - sum(promised.values())
        return Picture(
            now=now,
            members=members,
            capacity={uuid: number.capacity for uuid, number in numbers.items()},
            free=free,
            staging_free=self._staging.free_bytes(),
            arrivals=self._loads.arrivals(),
        )

    def member(self, name: WorkloadName) -> Member:
        """One of the picture, as it is now."""
        gpu = self._gear.gpu
        return self._member(name, [] if gpu is None else list(gpu.room.vram.numbers()), self._gear.clock())

    def _names(self) -> list[WorkloadName]:
        alive = [entry.name for entry in self._gear.ledger.entries().values() if not entry.ended]
        return sorted({*self.served, *alive})

    def _member(self, name: WorkloadName, gpus: list[GpuUuid], now: float) -> Member:
        return member_of(
            self.see(name, now),
            costs=self._memories.costs,
            gpus=gpus,
            auto_resume=self._gear.settings.arbiter.auto_resume,
            now=now,
        )

    def see(self, name: WorkloadName, now: float) -> Seen:
        gpu, entry, served = self._gear.gpu, self._gear.ledger.get(name), self.served.get(name)
        failure = self._failures.get(name)
        is_model = served is not None and served.kind is Kind.MODEL
        return Seen(
            name=name,
            entry=entry,
            served=served,
            memory=self._memories.of(name),
            demand=self._loads.of(name, now),
            hinted=self._hinted(served),
            resident=self._resident(name),
            ready=not is_model or self._gates.is_open(name) or name not in self.starting,
            worked_on=not self._workloads.idle(name),
            staged=self._staging.is_staged(entry),
            acting=self._acting.get(name),
            asked_for=name in self._asked_for,
            back_off_until=0.0 if failure is None else failure.until,
            refused_until=0.0 if gpu is None else gpu.room.refused_until(name),
            short=self._short.get(name, {}),
            never_ready=name not in self._been_up,
        )

    def _hinted(self, served: Served | None) -> Mapping[GpuUuid, int]:
        gpu = self._gear.gpu
        return {} if gpu is None or served is None else hinted(served, [each.uuid for each in gpu.gpus], self._visible)

    def _resident(self, name: WorkloadName) -> Mapping[GpuUuid, int]:
        gpu = self._gear.gpu
        return {} if gpu is None else gpu.room.vram.held_by(name)

    # -- deciding ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Ends by cancellation."""
        wait_s = 0.0
        while True:
            try:
                async with asyncio.timeout(wait_s):
                    await self._woken.wait()
            except TimeoutError:
                pass
            self._woken.clear()
            try:
                wait_s = self._step()
            except Exception:  # one workload that can't be understood must not end the care for all
                log.exception("deciding who has the VRAM failed")
                wait_s = _LOOK_S
            await asyncio.sleep(_APART_S)

    def _step(self) -> float:
        """One look and what follows. Returns how soon to look again, in seconds."""
        now = self._gear.clock()
        self._count(now)
        self._staging.look()
        self._keep_house(now)
        picture = self.picture = self.look()
        plan = self.plan = self._policy(picture, self._numbers)
        for action in plan.actions:
            if not self._stopped and not self._touched(action) & self._acting.keys():
                self._begin(action)
        for member in picture.members.values():
            if member.waiting and member.phase in (Phase.AWAY, Phase.ABSENT) and not fits_at_all(picture, member):
                needs = format_size(sum(member.bytes.values()))
                most = format_size(max(picture.capacity.values(), default=0))
                text = f"{member.name} needs {needs} of VRAM, which is more than this node hands out ({most})"
                if member.bytes.keys() - picture.capacity.keys():
                    text = f"{member.name} has a `vram` for {len(member.bytes)} GPUs in kybernate.yaml, and sees fewer here"
                self._gates.refuse(member.name, message=text, retry_after_s=None)
        next_look = _LOOK_S if plan.look_again is None else min(_LOOK_S, plan.look_again - now)
        return max(0.0, next_look)

    @staticmethod
    def _touched(action: Action) -> set[WorkloadName]:
        return {action.name, *(action.victims if isinstance(action, Bring) else ())}

    def _keep_house(self, now: float) -> None:
        """What follows from time, or from a changed file, and needs no policy."""
        for name, served in self.served.items():
            entry = self._gear.ledger.get(name)
            failure = self._failures.get(name)
            if name in self._refused and (failure is None or failure.until <= now):
                self._refused.discard(name)
                if self._gates.pardon(name):
                    self.pardoned(name)  # what comes from now on makes another attempt
            paused = entry is not None and entry.state is WorkloadState.PAUSED and entry.paused_by == USER
            if name in self._by_order and not paused:
                self._by_order.discard(name)
                if self._gates.pardon(name):
                    self.pardoned(name)  # also when it ended meanwhile: the next request starts it anew
            if entry is None or entry.ended or name in self._acting:
                continue
            if served.kind is Kind.MODEL and paused:
                hint = f"{name} was paused by order; `kybernate resume {name}` lets it answer"
                self._by_order.add(name)
                self._gates.refuse(name, message=hint, retry_after_s=None)
            if entry.state is WorkloadState.RUNNING and name not in self.starting and self._memories.of(name).was_ready:
                self._let_run(name)
            if self._memories.of(name).fingerprint not in ("", served.fingerprint):
                self._restart_when_idle(served, entry, now)
            elif self._may_sink(served, entry, now):
                self._act(name, Phase.LEAVING, self._sink(served), victims=())

    def _begin(self, action: Action) -> None:
        match action:
            case Bring(name=name, victims=victims):
                self._act(name, Phase.COMING, self._bring(action), victims=victims)
            case Leave(name=name):
                self._act(name, Phase.LEAVING, self._leave(action), victims=())
            case Stage(name=name):
                self._staging.begin(name)
            case Unstage(name=name):
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
        self._acting[name] = Acting(phase, now)
        for victim in victims:
            self._acting[victim] = Acting(Phase.LEAVING, now)

        async def body() -> None:
            try:
                await work
            finally:
                for each in (name, *victims):
                    self._acting.pop(each, None)
                self.wake()

        self._tasks.start(body(), name=f"{phase.value} {name}")

    # -- effects -----------------------------------------------------------------------------------------------------

    async def _bring(self, action: Bring) -> None:
        name, victims = action.name, action.victims
        entry, served = self._gear.ledger.get(name), self.served.get(name)
        begun = entry is None or entry.ended
        if begun:
            self.starting.add(name)
        elif victims and entry is not None and sum(entry.evicted.values()) <= self._staging.free_bytes():
            self._staging.begin(name)  # while its victims' requests end
        try:
            await self._clear(victims, preempt=action.preempt)
            if begun and served is None:
                raise Conflict(f"workload {name} has ended")
            if victims and (begun or name in self._short) and (gpu := self._gear.gpu) is not None:
                await gpu.room.clear_room(name, victims)  # more than the books say is needed
            if begun and served is not None:
                began = self._gear.clock()
                await self._coming.start(served, victims=victims, wait_s=_ROOM_S)
                self.learn_coming(name, None, self._gear.clock() - began)
            else:
                why = f"resumed by the policy: {action.why}"
                await self._coming.resume(name, victims=victims, wait_s=_ROOM_S, why=why)
        except Exception as e:
            self._failed(name, e, "come")
        else:
            self.up(name)
        finally:
            self.starting.discard(name)
            for victim in victims:
                self._let_run(victim)

    async def _clear(self, victims: tuple[WorkloadName, ...], *, preempt: bool) -> None:
        """Let victims' requests end before anything is moved. Raises Busy; all of them go on answering then."""

        async def one(victim: WorkloadName) -> None:
            cut = preempt and self.preempts(victim)
            try:
                await self._gates.close(victim, timeout_s=self._settings.drain, preempt=cut)
            except Busy as e:
                self._back_off(victim, e.message)
                raise

        done = await asyncio.gather(*(one(victim) for victim in victims), return_exceptions=True)
        for result in done:
            if isinstance(result, BaseException):
                raise result

    async def _leave(self, action: Leave) -> None:
        name = action.name
        try:
            await self._gates.close(name, timeout_s=self._settings.drain)
            await self._switching.give_back(name, why=f"paused by the policy: {action.why}")
        except Exception as e:
            self._failed(name, e, "leave")
        finally:
            self._let_run(name)

    def _let_run(self, name: WorkloadName) -> None:
        """It was closed, and runs on after all."""
        entry = self._gear.ledger.get(name)
        if entry is not None and entry.state is WorkloadState.RUNNING and self._workloads.idle(name):
            self._gates.reopen(name)

    def _restart_when_idle(self, served: Served, entry: Entry, now: float) -> None:
        """Its program was changed in the file."""
        name = served.name
        demand = self._loads.of(name, now)
        settled = entry.state in (WorkloadState.RUNNING, WorkloadState.PAUSED) and self._workloads.idle(name)
        # One that lies elsewhere has nobody's requests; those that wait for it are for the new program.
        busy = entry.state is WorkloadState.RUNNING and (demand.in_flight or demand.waiting)
        if settled and not busy:
            self._act(name, Phase.LEAVING, self._replace(served), victims=())

    async def _replace(self, served: Served) -> None:
        name = served.name
        self._gear.events.record("reconfigured", "ended, since its program was changed in the file", workload=name)
        self._replacing.add(name)
        try:
            await self._gates.close(name, timeout_s=self._settings.drain)
            await self._workloads.stop(name, grace_s=_GRACE_S, remove=False)
        except Exception as e:
            self._failed(name, e, "end")
            self._let_run(name)
        else:
            self._memories.update(name, fingerprint="", done=False)
            self._been_up.discard(name)
        finally:
            self._replacing.discard(name)

    def _may_sink(self, served: Served, entry: Entry, now: float) -> bool:
        gpu = self._gear.gpu
        if gpu is None or served.sink_s is None or now - entry.since < served.sink_s:
            return False
        failure = self._failures.get(served.name)
        waiting = self._loads.of(served.name, now).waiting
        return not waiting and (failure is None or failure.until <= now) and self._coming.may_sink(gpu, entry)

    async def _sink(self, served: Served) -> None:
        if not await self._coming.sink(served):
            self._back_off(served.name, f"could not go to {served.lowest}")

    # -- failing -----------------------------------------------------------------------------------------------------

    def _failed(self, name: WorkloadName, error: Exception, what: str) -> None:
        known = isinstance(error, KybernateError)
        text = error.message if isinstance(error, KybernateError) else f"{type(error).__name__}: {error}"
        if not known:
            log.error("workload %s could not %s", name, what, exc_info=error)
        failure = self._back_off(name, text)
        self._gear.events.record(
            f"{what}-failed", f"{text}; tried again in {failure.pause_s:g} s at the earliest", workload=name
        )
        entry = self._gear.ledger.get(name)
        lasting = not isinstance(error, _PASSING) or entry is None or entry.ended
        if what == "come" and isinstance(error, NoRoom):
            # Its extents would have fit, but not what the driver keeps for it: the next time others make more room.
            numbers = {} if self._gear.gpu is None else self._gear.gpu.room.vram.numbers()
            self._short[name] = {
                uuid: min(number.unheld + 2 * CHUNK_BYTES, number.capacity) for uuid, number in numbers.items()
            }
        if what == "come" and lasting:
            self._refused.add(name)
            self._gates.refuse(name, message=f"{name} can't be had: {text}", retry_after_s=failure.pause_s)

    def _back_off(self, name: WorkloadName, reason: str) -> _Failure:
        before, now = self._failures.get(name), self._gear.clock()
        fresh = before is None or now - before.until > _STEADY_S
        pause = _AGAIN_S if before is None or fresh else min(2 * before.pause_s, _AGAIN_MOST_S)
        failure = self._failures[name] = _Failure(now + pause, pause, reason)
        return failure

    # -- counting ----------------------------------------------------------------------------------------------------

    def _count(self, now: float) -> None:
        holdings = []
        for entry in self._gear.ledger.entries().values():
            if entry.state is not WorkloadState.RUNNING or entry.external:
                continue
            served = self.served.get(entry.name)
            klass = Class.BATCH if served is None else served.klass
            is_model = served is not None and served.kind is Kind.MODEL
            busy = not is_model or self._loads.of(entry.name, now).in_flight > 0
            size = sum(self._resident(entry.name).values())
            if not size and entry.backend is Backend.BROKER:
                continue  # it could compute, and has nothing to compute on
            holdings.append(Holding(name=entry.name, klass=klass, resident=size, busy=busy))
        self._accounts.tick(holdings, now)

    def _learn(self, old: Entry | None, new: Entry) -> None:
        """From a switch that has just been reported, and from an end."""
        name = new.name
        if new.ended:
            self._short.pop(name, None)
        if old is not None and (old.state, new.state) == (WorkloadState.PAUSING, WorkloadState.PAUSED):
            self._failures.pop(name, None)
        before = None if old is None else old.last_pause
        if new.last_pause is not None and new.last_pause is not before:
            self._memories.learn(name, self._memories.costs.reported(new.last_pause, place=TierName.RAM))
            if new.evicted:
                self._memories.update(name, needs=dict(new.evicted))
        served = self.served.get(name)
        if served is None or old is None or old.ended or not new.ended or name in self._replacing:
            return
        by_order = old.state is WorkloadState.STOPPING
        if served.kind is Kind.JOB:
            self._job_ended(served, new, by_order=by_order)
        elif not by_order and name not in self.starting:
            self._back_off(name, f"ended with status {new.exit_status}")

    def _job_ended(self, served: Served, entry: Entry, *, by_order: bool) -> None:
        """Whether it is started again, and when."""
        over = entry.exit_status == 0 and served.restart is not Restart.ALWAYS
        done = over or by_order or served.restart is Restart.NEVER
        self._memories.update(served.name, done=done)
        if not done:
            self._back_off(served.name, f"ended with status {entry.exit_status}")

    def learn_coming(self, name: WorkloadName, place: TierName | None, seconds: float) -> None:
        """It came from there, which took so long. None: it was started, or cloned."""
        size = sum(self._resident(name).values())
        costs = self._memories.costs.observed(name, Direction.COME, place, seconds=seconds, size=size)
        self._memories.learn(name, costs)
