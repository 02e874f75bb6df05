"""The VRAM as serving sees it. On a node without a GPU all of it is empty, so that nobody else asks whether there is one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from kybernate.agent.vram.admission import VramAdmission
from kybernate.agent.vram.vram import Numbers, Vram
from kybernate.model.types import GpuUuid, WorkloadName
from kybernate.settings.specs import Kind, Served
from kybernate.settings.vram_hints import VISIBLE, hinted


class VramAccess:
    """Sizes are bytes. Use it in the loop's thread."""

    def __init__(self, *, gpus: Sequence[GpuUuid], vram: Vram, admission: VramAdmission) -> None:
        self._gpus = tuple(gpus)
        self._vram = vram
        self._admission = admission
        self._visible = os.environ.get(VISIBLE)

    @property
    def exists(self) -> bool:
        """Whether the agent has a GPU."""
        return bool(self._gpus)

    def numbers(self) -> Mapping[GpuUuid, Numbers]:
        """Of each GPU."""
        return self._vram.numbers()

    def held_by(self, name: WorkloadName) -> Mapping[GpuUuid, int]:
        """What a workload holds now."""
        return self._vram.held_by(name)

    def reserved_for(self, name: WorkloadName) -> Mapping[GpuUuid, int]:
        """What is kept for it while it runs, what it holds of that included."""
        return self._vram.kept_for(name)

    def refused_until(self, name: WorkloadName) -> float:
        """Until when it is left alone, since it could not be paused."""
        return self._admission.refused_until(name)

    def wanted_by(self, name: WorkloadName) -> Mapping[GpuUuid, int]:
        """What one that was paused in an allocation asks for as soon as it runs again."""
        return self._admission.wanted(name)

    def hinted(self, served: Served | None) -> Mapping[GpuUuid, int]:
        """What the configuration says that it needs."""
        return {} if served is None else hinted(served, list(self._gpus), self._visible)

    def reserve_for_jobs(self, served: Mapping[WorkloadName, Served]) -> None:
        """The configuration's jobs have their `vram` for themselves while they run: they grow, and nobody asks them how far."""
        jobs = [each for each in served.values() if each.kind is Kind.JOB]
        self._vram.keep_for({each.name: sizes for each in jobs if (sizes := self.hinted(each))})

    async def clear_room(self, name: WorkloadName, victims: Sequence[WorkloadName]) -> None:
        """Pause these before a workload comes that will ask for their room."""
        await self._admission.clear_room(name, victims)
