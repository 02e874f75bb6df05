"""What a plan's actions do: victims closed and drained, who comes resumed or started, who leaves paused.

Effects on different workloads run at the same time; each decides again in its workload's owner task. What fails is left alone for a
while, and who waits for it is refused with the reason where another moment won't mend it.
"""

from __future__ import annotations

from kybernate.agent.serving.action_runner import ActionRunner
from kybernate.agent.serving.bringup import Bringup
from kybernate.agent.serving.build_state import Seen
from kybernate.agent.serving.controller_state import ActionsUnderWay
from kybernate.agent.serving.failures import COME, LEAVE, ActionFailures
from kybernate.agent.serving.prefetching import Prefetching
from kybernate.agent.serving.ready_watch import ReadyWatch
from kybernate.agent.serving.surroundings import Switches
from kybernate.agent.serving.victims import Victims
from kybernate.agent.serving.workload_facts import WorkloadFacts
from kybernate.model.errors import Conflict
from kybernate.model.types import WorkloadName
from kybernate.policy.node_state import Action, Bring, DropPrefetched, Leave, Phase, Prefetch

_ROOM_S = 5.0
"""How long a resume looks for room where its victims didn't suffice."""


class BringEffect:
    """One that comes, and those who leave for it. Use it in the loop's thread."""

    def __init__(
        self,
        *,
        facts: WorkloadFacts,
        actions: ActionsUnderWay,
        runner: ActionRunner,
        victims: Victims,
        bringup: Bringup,
        prefetching: Prefetching,
        ready_watch: ReadyWatch,
        failures: ActionFailures,
    ) -> None:
        self._facts = facts
        self._actions = actions
        self._runner = runner
        self._victims = victims
        self._bringup = bringup
        self._prefetching = prefetching
        self._ready_watch = ready_watch
        self._failures = failures

    async def run(self, action: Bring) -> None:
        name, victims = action.name, action.victims
        seen = self._facts.see(name)
        from_nothing = seen.entry is None or seen.entry.ended
        if from_nothing:
            self._actions.set_starting(name, True)
        elif victims and sum(seen.entry.evicted.values() if seen.entry else ()) <= self._prefetching.free_bytes():
            self._prefetching.begin(name)  # while its victims' requests end
        leaving = victims
        try:
            await self._make_way(seen, action, from_nothing=from_nothing)
            if from_nothing:
                # A start may take minutes: who has given way may be brought back meanwhile.
                leaving = ()
                self._let_run(victims)
                self._runner.release(victims)
                if not await self._start(seen, victims):
                    return
            else:
                why = f"resumed by the policy: {action.why}"
                await self._bringup.resume(name, victims=victims, wait_s=_ROOM_S, why=why)
        except Exception as e:
            self._failures.report(name, e, COME)
        else:
            self._ready_watch.on_ready(name)
        finally:
            self._actions.set_starting(name, False)
            self._let_run(leaving)

    async def _make_way(self, seen: Seen, action: Bring, *, from_nothing: bool) -> None:
        name, victims = action.name, action.victims
        await self._victims.drain_all(victims, preempt=action.preempt)
        if from_nothing and seen.served is None:
            raise Conflict(f"workload {name} has ended")
        now = self._facts.see(name)
        if victims and (from_nothing or now.shortage or now.wanted or now.reserved):
            await self._victims.clear_room(name, victims)  # more than the books say is needed

    async def _start(self, seen: Seen, victims: tuple[WorkloadName, ...]) -> bool:
        """False: it was paused before it could be asked."""
        assert seen.served is not None
        seconds = await self._bringup.start(seen.served, victims=victims, wait_s=_ROOM_S)
        if seconds is None:
            return False
        self._ready_watch.on_started(seen.name, seconds)
        return True

    def _let_run(self, victims: tuple[WorkloadName, ...]) -> None:
        for victim in victims:
            self._victims.let_run(victim)


class Effects:
    """Begins what a plan says. Use it in the loop's thread."""

    def __init__(
        self,
        *,
        runner: ActionRunner,
        bring: BringEffect,
        victims: Victims,
        switches: Switches,
        prefetching: Prefetching,
        failures: ActionFailures,
    ) -> None:
        self._runner = runner
        self._bring = bring
        self._victims = victims
        self._switches = switches
        self._prefetching = prefetching
        self._failures = failures

    def begin(self, action: Action) -> None:
        """Nothing where another action is under way on one of its workloads."""
        victims = action.victims if isinstance(action, Bring) else ()
        if self._runner.is_acted_on((action.name, *victims)):
            return
        match action:
            case Bring(name=name):
                self._runner.begin(name, Phase.COMING, self._bring.run(action), victims=victims)
            case Leave(name=name):
                self._runner.begin(name, Phase.LEAVING, self._leave(action))
            case Prefetch(name=name):
                self._prefetching.begin(name)
            case DropPrefetched(name=name):
                self._prefetching.drop(name)

    async def _leave(self, action: Leave) -> None:
        name = action.name
        try:
            await self._victims.drain(name)
            await self._switches.give_back(name, why=f"paused by the policy: {action.why}")
        except Exception as e:
            self._failures.report(name, e, LEAVE)
        finally:
            self._victims.let_run(name)
