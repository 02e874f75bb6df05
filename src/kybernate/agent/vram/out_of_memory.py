"""What is recorded of allocations that can't be had: why not, and who has the room."""

from __future__ import annotations

from collections.abc import Callable

from kybernate.agent.records.events import Events
from kybernate.agent.vram.vram import Vram
from kybernate.cuda.driver import Gpu
from kybernate.model.quantities import format_seconds, format_size
from kybernate.model.types import WorkloadName

_RECORD_AGAIN_S = 10.0


class OutOfMemoryEvents:
    """Use it in the loop's thread."""

    def __init__(self, *, vram: Vram, events: Events, clock: Callable[[], float]) -> None:
        self._vram = vram
        self._events = events
        self._clock = clock
        self._recorded_at: dict[WorkloadName, float] = {}

    def forget(self, name: WorkloadName) -> None:
        self._recorded_at.pop(name, None)

    def record_exceeds_capacity(self, name: WorkloadName, gpu: Gpu, size: int) -> None:
        """It is more than there is. Said once in a while: programs try again and again with smaller sizes."""
        now = self._clock()
        if now - self._recorded_at.get(name, -_RECORD_AGAIN_S) < _RECORD_AGAIN_S:
            return
        self._recorded_at[name] = now
        held, capacity = self._vram.resident(name, gpu), self._vram.capacity(gpu)
        self._events.record(
            "out-of-memory",
            f"{format_size(size)} asked for on GPU {gpu.index} besides {format_size(held)} held: more than the "
            f"{format_size(capacity)} that are handed out there",
            workload=name,
            data={"bytes": size, "held": held, "capacity": capacity, "gpu": gpu.uuid},
        )

    def record_not_freed(
        self, name: WorkloadName, gpu: Gpu, size: int, *, waited_s: float, hopeless: bool, holders: str
    ) -> None:
        """It would fit, were others not there.

        Args:
            hopeless: none of them can give way.
            holders: who has the room, in words.
        """
        free = self._vram.free(gpu)
        how = "nobody can give way" if hopeless else f"others did not give way within {format_seconds(waited_s)}"
        self._events.record(
            "out-of-memory",
            f"{format_size(size)} asked for on GPU {gpu.index}: {format_size(max(0, free))} are free, and {how}: {holders}",
            workload=name,
            data={"bytes": size, "free": free, "gpu": gpu.uuid, "waited_s": waited_s},
        )
