"""With the first model or job the policy takes over who has the VRAM."""

from __future__ import annotations

from kybernate.agent.serving.configuration import CurrentConfiguration
from kybernate.agent.serving.controller import Controller
from kybernate.agent.serving.leases import Leases
from kybernate.agent.serving.planner import Planner
from kybernate.agent.vram.victims import VictimPolicy
from kybernate.agent.workloads.tasks import Tasks

MEET_S = 3.0
"""How long a predecessor's workers may take to say what they forward to, before anything is decided."""


class ActiveVictimPolicy:
    """Who chooses victims, and who comes before whom: None before there is something to serve. Called, it says who does."""

    def __init__(self) -> None:
        self._policy: VictimPolicy | None = None

    def __call__(self) -> VictimPolicy | None:
        return self._policy

    def follow(self, policy: VictimPolicy) -> None:
        """From now on."""
        self._policy = policy


class PolicyStart:
    """Use it in the loop's thread."""

    def __init__(
        self,
        *,
        current: CurrentConfiguration,
        planner: Planner,
        controller: Controller,
        leases: Leases,
        victim_policy: ActiveVictimPolicy,
        tasks: Tasks,
    ) -> None:
        self._current = current
        self._planner = planner
        self._controller = controller
        self._leases = leases
        self._victim_policy = victim_policy
        self._tasks = tasks
        self._active = False

    def begin_when_needed(self) -> None:
        """Does nothing once it has begun, and before there is something to serve."""
        if self._active or not self._current.served:
            return
        self._active = True
        self._victim_policy.follow(self._planner)
        self._tasks.keep(self._decide, name="controller")

    async def _decide(self) -> None:
        await self._leases.meet(MEET_S)
        await self._controller.run()
