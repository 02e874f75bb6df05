"""The one task that decides: it makes a picture, asks the policy, and begins what the plan says.

A plan is advice: effects.py carries it out and decides again where reading and changing are one, and the picture shows as coming or
leaving meanwhile who is under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

from kybernate.agent.gear import Gear
from kybernate.agent.orders.switching import Switching
from kybernate.agent.records.ledger import Entry
from kybernate.agent.serving.backoff import Failures
from kybernate.agent.serving.bringup import Coming
from kybernate.agent.serving.collect_state import Looking
from kybernate.agent.serving.controller_state import Notes
from kybernate.agent.serving.effects import Effects
from kybernate.agent.serving.gpu_usage import Accounts
from kybernate.agent.serving.leases import Gates
from kybernate.agent.serving.observe import Learning
from kybernate.agent.serving.periodic import Housekeeping
from kybernate.agent.serving.staging import Staging
from kybernate.agent.serving.status_text import Failed
from kybernate.agent.serving.worker_load import Loads
from kybernate.agent.serving.workload_stats import Memories
from kybernate.agent.vram.arbiter import Rank
from kybernate.agent.workloads.tasks import Tasks
from kybernate.agent.workloads.workloads import Workloads
from kybernate.model.quantities import format_size
from kybernate.model.types import EndedBy, GpuUuid, TierName, WorkloadName, WorkloadState
from kybernate.policy.node_state import Action, Bring, Class, NodeState, Phase, Plan
from kybernate.policy.registry import Policy, policy_named
from kybernate.policy.settings import PolicySettings
from kybernate.policy.victims import Choice, choose_victims, fits_at_all
from kybernate.settings import ServingSettings
from kybernate.settings.specs import Kind, Served

_LOOK_S = 1.0
"""At least so often: memory that is given back, and time itself, tell nobody."""
_APART_S = 0.01
"""Between two looks, so that a thousand requests a second are not a thousand plans."""


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
        self._tasks = tasks
        self._gates = gates
        self._loads = loads
        self._memories = memories
        self._staging = staging
        self._woken = asyncio.Event()
        self._numbers = PolicySettings()
        self._plan = Plan()
        notes = self._notes = Notes()
        self._policy: Policy = policy_named(notes.settings.policy)
        failures = self._failures = Failures(gear.clock)
        looking = self.looking = Looking(
            gear=gear,
            workloads=workloads,
            gates=gates,
            loads=loads,
            memories=memories,
            staging=staging,
            notes=notes,
            failures=failures,
        )
        learning = self._learning = Learning(
            gear=gear,
            loads=loads,
            memories=memories,
            accounts=accounts,
            notes=notes,
            failures=failures,
            looking=looking,
        )
        self._effects = Effects(
            gear=gear,
            workloads=workloads,
            switching=switching,
            coming=coming,
            gates=gates,
            memories=memories,
            staging=staging,
            tasks=tasks,
            notes=notes,
            failures=failures,
            learning=learning,
            preempts=self.preempts,
            wake=self.wake,
        )
        self.housekeeping = Housekeeping(
            gear=gear,
            workloads=workloads,
            coming=coming,
            gates=gates,
            loads=loads,
            memories=memories,
            notes=notes,
            failures=failures,
            effects=self._effects,
        )

    # -- from outside ------------------------------------------------------------------------------------------------

    def configure(self, served: Mapping[WorkloadName, Served], settings: ServingSettings) -> None:
        self._notes.served, self._notes.settings = served, settings
        self._numbers = settings.numbers()
        self._policy = policy_named(settings.policy)
        if (gpu := self._gear.gpu) is not None:
            gpu.vram.keep(self.looking.said())
        self._failures.forgive_all()  # whoever changed the file may have mended it
        for name, each in served.items():
            if each.kind is Kind.JOB and self._memories.of(name).fingerprint != each.fingerprint:
                self._gear.starts.allow(name)  # it is another job now
        self.wake()

    def wake(self) -> None:
        self._woken.set()

    def asked_for(self, name: WorkloadName) -> None:
        """A person ordered its resume, or its start: it shall run until somebody pauses it."""
        self._gear.starts.allow(name)
        self._notes.stopped.pop(name, None)
        self._notes.asked_for.add(name)
        self._failures.forgive(name)
        if self._memories.of(name).done:
            self._memories.update(name, done=False)
        self.wake()

    def stopping(self, name: WorkloadName) -> None:
        """A person ordered its stop: from now on it isn't started by itself."""
        self._notes.asked_for.discard(name)
        served = self.served.get(name)
        if served is None:
            return
        self._gear.starts.hold(name)
        self._notes.stopped.pop(name, None)
        self._notes.been_up.add(name)
        self._failures.forgive(name)
        if served.kind is Kind.JOB:
            self._memories.update(name, done=True, fingerprint=served.fingerprint)

    def stopped(self, name: WorkloadName) -> None:
        """That is done: a model's next request starts it again."""
        served = self.served.get(name)
        if served is not None and served.kind is Kind.MODEL and self._gear.starts.held(name):
            self._notes.stopped[name] = self._loads.of(name, self._gear.clock()).begun
        self.wake()

    def take_over(self) -> None:
        """After the recovery, before the first look."""
        self._learning.take_over()

    def up(self, name: WorkloadName) -> None:
        """It may be asked, or computes."""
        self._learning.up(name)
        self.wake()

    def came(self, name: WorkloadName, place: TierName, seconds: float) -> None:
        """It was resumed from there, which took so long."""
        self._learning.came(name, place, seconds)

    def changed(self, old: Entry | None, new: Entry | None) -> None:
        """Observer of the ledger."""
        self._learning.count(self._gear.clock())
        if new is not None:
            self._learning.changed(old, new)
            ran = old is not None and old.state in (WorkloadState.RUNNING, WorkloadState.PAUSING)
            if new.ended_by is EndedBy.ORDER or (ran and new.state in (WorkloadState.PAUSED, WorkloadState.EXITED)):
                self._notes.asked_for.discard(new.name)
        self.wake()

    def reason(self, name: WorkloadName, *, public: bool) -> str:
        """Why it waits, in words; empty when there is nothing to say. `public`: without what it has written itself."""
        return self._failures.reason(name, public=public) or self._plan.reasons.get(name, "")

    def failed(self, name: WorkloadName, *, public: bool) -> Failed | None:
        return self._failures.last(name, public=public)

    @property
    def served(self) -> Mapping[WorkloadName, Served]:
        return self._notes.served

    def starting(self, name: WorkloadName) -> bool:
        """It was begun from nothing, and is not through yet."""
        return name in self._notes.starting

    def choose(self, *, requester: WorkloadName, needed: Mapping[GpuUuid, int], min_run_s: float | None) -> Choice:
        """Victims for an allocation or an ordered resume: see `room.Chooser`."""
        return choose_victims(
            self.looking.look(), requester=requester, needed=needed, settings=self._numbers, min_run=min_run_s
        )

    def rank(self, name: WorkloadName) -> Rank:
        """Who comes before whom where allocations wait for each other."""
        served = self.served.get(name)
        return (False, 0) if served is None else (served.klass is Class.INTERACTIVE, served.priority)

    def preempts(self, name: WorkloadName) -> bool:
        """Whether its requests in flight may be cut off for others."""
        served = self.served.get(name)
        return served is not None and served.klass in self._numbers.preempt

    def preview(self, asking: list[WorkloadName]) -> tuple[NodeState, Plan, dict[WorkloadName, str]]:
        """What would be done now, were there a request for each of these; and whose would be refused, with which words."""
        picture = self.looking.look()
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
            except Exception as e:  # one workload that can't be understood must not end the care for all
                self._tasks.failed("controller", e)
                wait_s = _LOOK_S
            await asyncio.sleep(_APART_S)

    def _step(self) -> float:
        """One look and what follows. Returns how soon to look again, in seconds."""
        now = self._gear.clock()
        self._learning.count(now)
        self._staging.look()
        if not self._gear.starts.closed:
            self.housekeeping.look(now)
        picture = self.looking.look()
        plan = self._plan = self._policy(picture, self._numbers)
        for action in plan.actions:
            if not self._gear.starts.closed and not self._touched(action) & self._notes.acting.keys():
                self._effects.begin(action)
        for member in picture.members.values():
            if member.waiting and member.phase in (Phase.AWAY, Phase.ABSENT) and not fits_at_all(picture, member):
                needs = format_size(sum(member.bytes.values()))
                most = format_size(max(picture.capacity.values(), default=0))
                text = f"{member.name} needs {needs} of VRAM, which is more than this node hands out ({most})"
                if member.bytes.keys() - picture.capacity.keys():
                    text = f"{member.name} has a `vram` for {len(member.bytes)} GPUs in kybernate.yaml, and sees fewer here"
                self._gates.refuse(member.name, message=text, retry_after_s=None)
        next_look = _LOOK_S if plan.next_poll is None else min(_LOOK_S, plan.next_poll - now)
        return max(0.0, next_look)

    @staticmethod
    def _touched(action: Action) -> set[WorkloadName]:
        return {action.name, *(action.victims if isinstance(action, Bring) else ())}
