"""Who waits for room in VRAM, for how much and since when, and what stands in the way: what admission.py decides on while an
allocation waits. All that it changes is the room promised to whoever was paused in its call. Use it in the loop's thread.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from kybernate.agent.records.ledger import Entry, Ledger
from kybernate.agent.vram import arbiter
from kybernate.agent.vram.arbiter import Asking, Fit, Holder, Rank
from kybernate.agent.vram.vram import Vram
from kybernate.cuda.driver import Gpu
from kybernate.model.quantities import format_size
from kybernate.model.types import GpuUuid, WorkloadName, WorkloadState

RESERVED_S = 5.0
"""A promise not taken up within this time lapses; the library asks again within milliseconds."""
_STILL = frozenset({WorkloadState.RUNNING, WorkloadState.PAUSED})


@dataclass(eq=False, frozen=True, slots=True)
class _Question:
    name: WorkloadName
    gpu: GpuUuid
    size: int


class WaitingAllocations:
    def __init__(
        self,
        *,
        vram: Vram,
        ledger: Ledger,
        clock: Callable[[], float],
        idle: Callable[[WorkloadName], bool],
        refused_until: Callable[[WorkloadName], float],
        rank: Callable[[WorkloadName], Rank],
    ) -> None:
        """
        Args:
            idle: nobody does anything to it.
            refused_until: until when it is left alone; infinite where it can't be paused at all.
            rank: who comes before whom.
        """
        self._vram = vram
        self._ledger = ledger
        self._clock = clock
        self._idle = idle
        self._refused_until = refused_until
        self._rank = rank
        self._open: list[_Question] = []
        self._since: dict[WorkloadName, float] = {}
        self._wanted: dict[WorkloadName, dict[GpuUuid, int]] = {}

    @contextlib.contextmanager
    def while_waiting(self, name: WorkloadName, gpu: Gpu, size: int) -> Iterator[None]:
        """For as long as one of its allocations waits."""
        question = _Question(name, gpu.uuid, size)
        self._open.append(question)
        self._since.setdefault(name, self._clock())
        try:
            yield
        finally:
            self._open.remove(question)

    def satisfied(self, name: WorkloadName) -> None:
        """What it waited for."""
        self._since.pop(name, None)

    def forget(self, name: WorkloadName) -> None:
        """It has ended, or begins anew."""
        self._since.pop(name, None)
        self._wanted.pop(name, None)

    def somebody_waits(self) -> bool:
        return bool(self._open)

    def wanted(self, name: WorkloadName) -> Mapping[GpuUuid, int]:
        """What it asked for when it was paused in its call: it asks again as soon as it runs."""
        return self._wanted.get(name, {})

    # -- what stands in the way --------------------------------------------------------------------------------------

    def hopeless(self, name: WorkloadName, gpu: Gpu, size: int) -> bool:
        """Nobody who could give way would help."""
        return arbiter.hopeless(
            size=size,
            own=self._vram.resident(name, gpu),
            free=self._vram.free(gpu),
            capacity=self._vram.capacity(gpu),
            holders=self._holders(name, gpu),
        )

    def outranked(self, entry: Entry, gpu: Gpu, size: int) -> bool:
        """Those who come before it hold its room, and it can be paused meanwhile."""
        holders, rank = self._holders(entry.name, gpu), self._rank(entry.name)
        return self._pausable(entry) and arbiter.outranked(
            size=size, free=self._vram.free(gpu), rank=rank, holders=holders
        )

    def deadlock_victim(self) -> WorkloadName | None:
        """Whom to pause because it and others wait for each other."""
        asking = self._asking()
        names = {one.name for one in asking}
        if len(names) < 2:
            return None
        reachable = {
            uuid: self._vram.free(gpu) + sum(self._gives(entry, gpu) for entry in self._others(names))
            for uuid, gpu in self._vram.gpus.items()
        }
        return arbiter.deadlock_victim(asking, reachable=reachable)

    def describe_obstacles(self, name: WorkloadName, gpu: Gpu) -> str:
        """In words."""
        reserved = self._vram.numbers()[gpu.uuid].reserved
        found = []
        for entry in self._others({name}):
            size, promised = self._vram.resident(entry.name, gpu), reserved.get(entry.name, 0)
            if not size and not promised:
                continue
            waits = ", waits for more itself" if entry.name in {question.name for question in self._open} else ""
            immovable = ", can't be paused" if self._stays(entry) else ""
            promise = f", has {format_size(promised)} reserved" if promised else ""
            found.append(f"{entry.name} ({entry.state}, holds {format_size(size)}{promise}{waits}{immovable})")
        return ", ".join(found) or "nobody whom this agent could pause"

    def _asking(self) -> list[Asking]:
        needed: dict[WorkloadName, dict[GpuUuid, int]] = {}
        for question in self._open:
            mine = needed.setdefault(question.name, {})
            mine[question.gpu] = mine.get(question.gpu, 0) + question.size
        found = []
        for name, sizes in needed.items():
            entry = self._ledger.get(name)
            if entry is None or entry.ended:
                continue
            found.append(
                Asking(
                    name=name,
                    needed=sizes,
                    held=self._vram.held_by(name),
                    rank=self._rank(name),
                    since=self._since.get(name, 0.0),
                    pausable=self._pausable(entry),
                )
            )
        return found

    def _holders(self, name: WorkloadName, gpu: Gpu) -> list[Holder]:
        reserved = self._vram.numbers()[gpu.uuid].reserved
        return [
            Holder(
                name=entry.name,
                size=self._vram.resident(entry.name, gpu),
                rank=self._rank(entry.name),
                stays=self._stays(entry),
                moves=entry.state not in _STILL or not self._idle(entry.name) or entry.name in reserved,
            )
            for entry in self._others({name})
        ]

    def _others(self, names: set[WorkloadName]) -> list[Entry]:
        return [entry for entry in self._ledger.entries().values() if not entry.ended and entry.name not in names]

    def _gives(self, entry: Entry, gpu: Gpu) -> int:
        return 0 if self._stays(entry) else self._vram.resident(entry.name, gpu)

    def _stays(self, entry: Entry) -> bool:
        return entry.external or math.isinf(self._refused_until(entry.name))

    def _pausable(self, entry: Entry) -> bool:
        able = self._idle(entry.name) and self._refused_until(entry.name) <= self._clock() and not entry.external
        return able and entry.state is WorkloadState.RUNNING

    def changed(self, old: Entry | None, new: Entry | None) -> None:
        """Observer of the ledger."""
        if new is None or old is None or old.state is new.state:
            return
        if new.state is WorkloadState.PAUSED and old.state is WorkloadState.PAUSING:
            if asked := next((one.needed for one in self._asking() if one.name == new.name), None):
                self._wanted[new.name] = dict(asked)
        elif new.state is WorkloadState.RUNNING and old.state is WorkloadState.RESUMING:
            for uuid, size in self._wanted.pop(new.name, {}).items():
                if self._vram.judge(new.name, self._vram.gpus[uuid], size) is Fit.FITS:
                    self._vram.reserve(new.name, uuid, size, for_s=RESERVED_S)
