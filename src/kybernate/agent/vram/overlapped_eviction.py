"""Room that comes while a resume is already under way: victims leave extent by extent, and the one that is resumed takes
what they free as they free it, so both directions of the link are in use at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from kybernate.agent.workloads.orders import Freed
from kybernate.engine.vram_handoff import VramHandoff
from kybernate.model.types import GpuUuid, WorkloadName

Leave = Callable[[WorkloadName, Freed], Coroutine[Any, Any, None]]
"""Pauses a victim, telling of its memory as it becomes free; raises when it could not be paused."""


class OverlappedEviction:
    """Victims on their way out, and the handover of what they free. Made and awaited in the event loop."""

    def __init__(
        self,
        *,
        victims: Sequence[WorkloadName],
        resident: Mapping[WorkloadName, Mapping[GpuUuid, int]],
        spare: Mapping[GpuUuid, int],
        leave: Leave,
    ) -> None:
        """`resident`: bytes each victim holds now; `spare`: bytes free already."""
        self.victims = tuple(victims)
        self.handoff = VramHandoff(spare)
        self._leave = leave
        self._tasks = [asyncio.create_task(self._one(victim, resident[victim])) for victim in victims]
        self._end = asyncio.create_task(self._close())

    async def _one(self, victim: WorkloadName, resident: Mapping[GpuUuid, int]) -> None:
        left = dict(resident)

        def freed(gpu: GpuUuid, size: int) -> None:
            left[gpu] = left.get(gpu, 0) - size
            self.handoff.give(gpu, size)

        try:
            await self._leave(victim, freed)
        except BaseException as error:
            self.handoff.fail(error)
            raise
        for gpu, size in left.items():
            if size > 0:  # a pause that was under way already tells nobody
                self.handoff.give(gpu, size)

    async def _close(self) -> None:
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.handoff.close()

    async def settled(self) -> bool:
        """Wait until no victim is on its way any more. Whether all of them left."""
        await self._end
        return all(task.exception() is None for task in self._tasks)
