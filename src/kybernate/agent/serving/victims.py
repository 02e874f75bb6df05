"""Those who give way: their requests end before anything is moved, and they go on answering where they didn't leave."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from kybernate.agent.serving.backoff import Backoff
from kybernate.agent.serving.configuration import CurrentConfiguration
from kybernate.agent.serving.leases import Leases
from kybernate.agent.serving.readiness import Readiness
from kybernate.agent.serving.vram_access import VramAccess
from kybernate.model.errors import Busy
from kybernate.model.types import WorkloadName


class Victims:
    """Use it in the loop's thread."""

    def __init__(
        self,
        *,
        configuration: CurrentConfiguration,
        leases: Leases,
        readiness: Readiness,
        backoff: Backoff,
        vram: VramAccess,
    ) -> None:
        self._configuration = configuration
        self._leases = leases
        self._readiness = readiness
        self._backoff = backoff
        self._vram = vram

    async def drain(self, name: WorkloadName) -> None:
        """Let its requests end. Raises Busy; it goes on answering then."""
        await self._leases.close(name, timeout_s=self._configuration.serving.drain)

    async def drain_all(self, victims: Iterable[WorkloadName], *, preempt: bool) -> None:
        """The same of several, at the same time.

        Args:
            preempt: those of a class that may be preempted are cut off from their requests.
        """

        async def one(victim: WorkloadName) -> None:
            cut = preempt and self._configuration.may_preempt(victim)
            try:
                await self._leases.close(victim, timeout_s=self._configuration.serving.drain, preempt=cut)
            except Busy as e:
                self._backoff.add(victim, e.message)
                raise

        done = await asyncio.gather(*(one(victim) for victim in victims), return_exceptions=True)
        for result in done:
            if isinstance(result, BaseException):
                raise result

    async def clear_room(self, name: WorkloadName, victims: tuple[WorkloadName, ...]) -> None:
        """Pause them now: `name` will need more than the books say."""
        await self._vram.clear_room(name, victims)

    def let_run(self, name: WorkloadName) -> None:
        """It was closed, and runs on after all."""
        if self._readiness.is_settled(name):
            self._leases.reopen(name)
