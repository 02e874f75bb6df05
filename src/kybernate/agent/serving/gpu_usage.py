"""Who had the GPU for how long: counted while it happens, and carried on by the agent that comes after this one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kybernate.agent.serving.workload_stats import Usage, WorkloadStats
from kybernate.model.types import WorkloadName

_WRITE_S = 5.0
"""An agent that is killed loses so much at most, and finds it again if the workload still runs."""


@dataclass(frozen=True, slots=True)
class Resident:
    """One workload that can compute just now."""

    name: WorkloadName
    klass: str
    bytes: int
    """Of VRAM, on all GPUs."""
    busy: bool


class GpuUsage:
    """Use it in one thread. `tick` at every change and at least once a second."""

    def __init__(self, stats: WorkloadStats) -> None:
        self._stats = stats
        self._last: dict[WorkloadName, Resident] = {}
        self._at: float | None = None
        self._fresh: dict[WorkloadName, Usage] = {}
        self._written = 0.0

    def tick(self, residents: Iterable[Resident], now: float) -> None:
        """Count the time since the last tick by how it was then."""
        present = {resident.name: resident for resident in residents}
        if self._at is None:
            self._carry_on(present, now)
        elif now > self._at:
            for name, resident in self._last.items():
                self._count(name, resident, now - self._at)
        left = self._last.keys() - present.keys()
        self._last, self._at = present, now
        if left or now - self._written >= _WRITE_S:
            self.write(now)

    def usage(self, name: WorkloadName) -> Usage:
        return self._stats.of(name).usage + self._fresh.get(name, Usage())

    def by_class(self) -> Mapping[str, Usage]:
        """Over all workloads there ever were."""
        found: dict[str, Usage] = {}
        for name, stats in self._stats.all().items():
            found[stats.klass] = found.get(stats.klass, Usage()) + self.usage(name)
        found.pop("", None)
        return found

    def write(self, now: float) -> None:
        self._written = now
        for name in self._fresh.keys() | self._last.keys():
            resident = self._last.get(name)
            changes: dict[str, object] = {"usage": self.usage(name), "counted_until": now if resident else 0.0}
            if resident is not None:
                changes["klass"] = resident.klass
            self._stats.update(name, **changes)
            self._fresh.pop(name, None)

    def _carry_on(self, present: Mapping[WorkloadName, Resident], now: float) -> None:
        """No agent counted for a while: what held VRAM before and does so now did meanwhile."""
        for name, resident in present.items():
            until = self._stats.of(name).counted_until
            if 0 < until < now:
                self._count(name, resident, now - until)

    def _count(self, name: WorkloadName, resident: Resident, seconds: float) -> None:
        one = Usage(seconds, seconds if resident.busy else 0.0, seconds * resident.bytes)
        self._fresh[name] = self._fresh.get(name, Usage()) + one
