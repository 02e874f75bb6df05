"""What there is of each GPU's memory: how much is handed out at most, what is held of it, and what is promised to whom.

Numbers only; who is paused for room is admission.py's business. Also asked in the broker's threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from kybernate.agent.records.ledger import Entry
from kybernate.agent.vram.arbiter import Fit, judge
from kybernate.cuda.driver import Gpu
from kybernate.model.types import GIB, Depth, GpuUuid, WorkloadName, WorkloadState
from kybernate.settings import VramSettings


class UsageSource(Protocol):
    """Who knows what workloads hold: `VramUsage`. In bytes; None: of all."""

    def resident_bytes(self, workload: WorkloadName | None = None, gpu: Gpu | None = None) -> int: ...


class VramUsage:
    """What workloads hold: their extents, and what their processes hold without our library, as far as the ledger knows. Also asked
    in the broker's threads, for each allocation."""

    def __init__(self, extent_bytes: Callable[[WorkloadName | None, Gpu | None], int]) -> None:
        """`extent_bytes`: what the broker knows of that; asked at each question only, since the broker is made after this."""
        self._extent_bytes = extent_bytes
        self._unmanaged: Mapping[WorkloadName, Mapping[GpuUuid, int]] = {}

    def resident_bytes(self, workload: WorkloadName | None = None, gpu: Gpu | None = None) -> int:
        return self._extent_bytes(workload, gpu) + self.unmanaged_bytes(workload, gpu)

    def unmanaged_bytes(self, workload: WorkloadName | None = None, gpu: Gpu | None = None) -> int:
        holders = self._unmanaged  # replaced as a whole
        if not holders:
            return 0
        return sum(
            size
            for name, sizes in holders.items()
            for uuid, size in sizes.items()
            if (workload is None or name == workload) and (gpu is None or uuid == gpu.uuid)
        )

    def changed(self, old: Entry | None, new: Entry | None) -> None:
        """Observer of the ledger."""
        if (entry := new or old) is None:
            return
        name = entry.name
        has = new.unmanaged if new is not None and holds_unmanaged(new) else {}
        if has != self._unmanaged.get(name, {}):
            others = {other: sizes for other, sizes in self._unmanaged.items() if other != name}
            self._unmanaged = {**others, name: has} if has else others


def holds_unmanaged(entry: Entry) -> bool:
    """Whether what is written of its unmanaged VRAM is in VRAM now. Of a paused one it is what the driver brings back."""
    if entry.external:
        return False
    if entry.state in (WorkloadState.STARTING, WorkloadState.RUNNING, WorkloadState.PAUSING):
        return True
    return entry.state is WorkloadState.PAUSED and entry.depth is Depth.WARM


@dataclass(frozen=True, slots=True)
class Numbers:
    """Of one GPU, in bytes."""

    capacity: int
    unheld: int
    """Of that, held by nobody."""
    reserved: Mapping[WorkloadName, int]
    """Promised to whoever was told to ask again."""


@dataclass(frozen=True, slots=True)
class _Promise:
    """Of bytes on one GPU to one workload."""

    size: int
    until: float
    leaving: tuple[WorkloadName, ...]
    spare: int

    def claim(self, *, taken: int, held: int) -> int:
        """What of it has to come from what is free now.

        Args:
            taken: what the workload has by now.
            held: what those who leave for it still hold, which nobody else gets.
        """
        if not self.leaving:
            return self.size
        return max(0, self.size - taken - held, self.spare - taken)


class Vram:
    """See the module."""

    def __init__(
        self, *, gpus: Sequence[Gpu], settings: VramSettings, usage: UsageSource, clock: Callable[[], float]
    ) -> None:
        self.gpus: Mapping[GpuUuid, Gpu] = {gpu.uuid: gpu for gpu in gpus}
        self._settings = settings
        self._clock = clock
        self._reserved: dict[tuple[WorkloadName, GpuUuid], _Promise] = {}
        self._kept_sizes: Mapping[WorkloadName, Mapping[GpuUuid, int]] = {}
        self._running: frozenset[WorkloadName] = frozenset()
        self._usage = usage

    # -- what there is ---------------------------------------------------------------------------------------------

    def capacity(self, gpu: Gpu) -> int:
        """What is handed out on this GPU at most, in bytes."""
        usable = gpu.total_bytes - self._reserve(gpu)
        return usable if self._settings.limit is None else min(usable, self._settings.limit)

    def free(self, gpu: Gpu) -> int:
        """Above the reserve, in bytes; below zero where others have taken of that."""
        return gpu.free_bytes() - self._reserve(gpu)

    def resident(self, name: WorkloadName | None, gpu: Gpu) -> int:
        """What a workload holds there, in bytes. None: all of them."""
        return self._usage.resident_bytes(name, gpu)

    def held_by(self, name: WorkloadName) -> dict[GpuUuid, int]:
        held = {uuid: self.resident(name, gpu) for uuid, gpu in self.gpus.items()}
        return {uuid: size for uuid, size in held.items() if size}

    def held(self, name: WorkloadName) -> int:
        """On all GPUs, in bytes."""
        return sum(self.held_by(name).values())

    def numbers(self) -> dict[GpuUuid, Numbers]:
        """How each GPU stands."""
        now = self._clock()
        found = {}
        for uuid, gpu in self.gpus.items():
            capacity = self.capacity(gpu)
            promised = {name: left for name in self._kept_sizes if (left := self._kept(name, gpu))}
            for (name, where), promise in list(self._reserved.items()):
                if where == uuid and promise.until > now:
                    promised[name] = max(promise.size, promised.get(name, 0))
            unheld = min(self.free(gpu), capacity - self.resident(None, gpu))
            found[uuid] = Numbers(capacity=capacity, unheld=unheld, reserved=promised)
        return found

    # -- whether something fits ------------------------------------------------------------------------------------

    def judge(self, name: WorkloadName, gpu: Gpu, size: int) -> Fit:
        return judge(
            size=size,
            own=self.resident(name, gpu),
            free=self.free(gpu),
            capacity=self.capacity(gpu),
            handed_out=self.resident(None, gpu),
            reserved=self.reserved_for_others(name, gpu),
        )

    def fits(self, name: WorkloadName, needed: Mapping[GpuUuid, int]) -> bool:
        return all(
            uuid in self.gpus and self.judge(name, self.gpus[uuid], size) is Fit.FITS for uuid, size in needed.items()
        )

    def missing(self, name: WorkloadName, gpu: Gpu, size: int) -> int:
        """How much must become free before it fits, in bytes."""
        available = min(self.free(gpu), self.capacity(gpu) - self.resident(None, gpu))
        return size + self.reserved_for_others(name, gpu) - available

    # -- promises --------------------------------------------------------------------------------------------------

    def reserve(
        self,
        name: WorkloadName,
        uuid: GpuUuid,
        size: int,
        *,
        for_s: float,
        leaving: Sequence[WorkloadName] = (),
        spare: int = 0,
    ) -> None:
        """Promise it, in place of an earlier promise.

        Args:
            size: bytes.
            leaving: whose memory becomes the workload's as they leave: a promise of that, not of what is free.
            spare: what it takes of what is free all the same, in bytes.
        """
        self._reserved[name, uuid] = _Promise(size, self._clock() + for_s, tuple(leaving), spare)

    def take(self, name: WorkloadName, uuid: GpuUuid) -> None:
        """What was promised is there, or the promise void."""
        self._reserved.pop((name, uuid), None)

    def release(self, name: WorkloadName) -> None:
        """On all GPUs."""
        for key in [key for key in self._reserved if key[0] == name]:
            self._reserved.pop(key, None)

    def keep_for(self, sizes: Mapping[WorkloadName, Mapping[GpuUuid, int]]) -> None:
        """What workloads have for themselves while they run, even before they ask for it, in bytes by GPU. In place of what was
        said before."""
        self._kept_sizes = sizes

    def set_running(self, names: Iterable[WorkloadName]) -> None:
        """Only for these is anything kept."""
        self._running = frozenset(names)

    def kept_for(self, name: WorkloadName) -> Mapping[GpuUuid, int]:
        """What is kept for it while it runs, what it holds of that included."""
        return self._kept_sizes.get(name, {})

    def would_free(self, name: WorkloadName, gpu: Gpu) -> int:
        """What others may have there once it is paused: what it holds, and what is kept for it."""
        return self.resident(name, gpu) + self._kept(name, gpu)

    def reserved_for_others(self, name: WorkloadName, gpu: Gpu) -> int:
        now = self._clock()
        claims = {holder: self._kept(holder, gpu) for holder in self._kept_sizes}
        for (holder, uuid), promise in list(self._reserved.items()):
            if uuid == gpu.uuid and promise.until > now:
                held = sum(self.resident(other, gpu) for other in promise.leaving)
                claims[holder] = max(claims.get(holder, 0), promise.claim(taken=self.resident(holder, gpu), held=held))
        return sum(claim for holder, claim in claims.items() if holder != name)

    def _kept(self, name: WorkloadName, gpu: Gpu) -> int:
        """What is still to come of what is kept for it."""
        if name not in self._running:
            return 0
        return max(0, self.kept_for(name).get(gpu.uuid, 0) - self.resident(name, gpu))

    def _reserve(self, gpu: Gpu) -> int:
        return default_reserve(gpu.total_bytes) if self._settings.reserve is None else self._settings.reserve


def default_reserve(total_bytes: int) -> int:
    return min(GIB, total_bytes // 50)
