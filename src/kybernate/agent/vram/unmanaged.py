"""VRAM that workloads' processes hold without our library: their command dropped LD_PRELOAD (`env -i`, sudo, a static launcher).

Such a process asks nobody for memory and has no gates: the driver's checkpoint is all that moves it, slowly. So that it counts as a
workload like others, its VRAM is found out and written into the ledger, where `VramUsage` (vram.py) takes it from. A workload that
is left to the driver by choice (the driver backend) is counted in the same way.

It is looked for only when more of a GPU is in use than the books explain, before a decision that would say no, and once a second
for as long as there is such a process. Never in an allocation, nor in the pause of any other workload.

Limits: a process outside of the workload's tree (a container that a daemon starts) isn't the workload's. Where the driver's list
leaves a process out (in containers it may), it is taken to have what the books don't explain, which may be too much.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kybernate.agent.records.events import Events
from kybernate.agent.records.ledger import Entry, Ledger
from kybernate.agent.vram.vram import Vram, holds_unmanaged
from kybernate.agent.workloads.runtime import GpuRuntime
from kybernate.agent.workloads.targets import cuda_processes
from kybernate.agent.workloads.threads import in_thread
from kybernate.engine.target import residual_pids
from kybernate.model.native import PRELOAD_NAME
from kybernate.model.quantities import format_size, together
from kybernate.model.types import CHUNK_BYTES, MIB, Backend, GpuUuid, HostPid, WorkloadName
from kybernate.process import procfs
from kybernate.process.tree import Tree

if TYPE_CHECKING:
    from kybernate.cuda.processes import Memory, ProcessList

_LOOK_S = 1.0
_HELLO_S = 2.0
"""A process with the library says hello a moment after it has begun to use the GPU. One that hasn't by then never will: it wasn't
told where its agent is."""
_ANYWAY = 30
"""Looks after so many seconds even if nothing has grown: a context that went may have hidden one that came."""
_NOISE_BYTES = 64 * MIB
"""A real driver's own books move by some MiB; a context is several hundred."""


@dataclass(frozen=True, slots=True)
class Bare:
    """A process that uses the GPU without our library."""

    workload: WorkloadName
    pid: HostPid
    name: str


def shares(
    bare: Iterable[Bare], memory: Memory, unexplained: Mapping[GpuUuid, int]
) -> dict[WorkloadName, dict[GpuUuid, int]]:
    """Who has how much, in bytes. Pure.

    Args:
        memory: as listed by the driver. Those it doesn't list share what is left of `unexplained`.
        unexplained: in use on each GPU and in nobody's books.
    """
    found: dict[WorkloadName, dict[GpuUuid, int]] = {}
    processes = list(bare)
    for process in processes:
        found[process.workload] = together(found.get(process.workload, {}), memory.get(process.pid, {}))
    unlisted = [process for process in processes if process.pid not in memory]
    if unlisted:
        listed = together(*memory.values())
        parts = {uuid: max(0, size - listed.get(uuid, 0)) // len(unlisted) for uuid, size in unexplained.items()}
        for process in unlisted:
            found[process.workload] = together(found[process.workload], parts)
    return {name: {uuid: size for uuid, size in sizes.items() if size} for name, sizes in found.items()}


class Unmanaged:
    """See the module. Use it in the loop's thread."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        events: Events,
        gpu: GpuRuntime | None,
        vram: Vram,
        processes: ProcessList | None,
        simulated: bool,
        tree: Callable[[WorkloadName], Tree | None],
    ) -> None:
        """
        Args:
            processes: None without a GPU.
            simulated: the driver's own books are exact.
        """
        self._ledger = ledger
        self._events = events
        self._gpu = gpu
        self._vram = vram
        self._noise_bytes = CHUNK_BYTES if simulated else _NOISE_BYTES
        self._processes = processes
        self._tree = tree
        self._looking: asyncio.Task[None] | None = None
        self._calm: dict[GpuUuid, int] = {}
        """Unexplained on each GPU when nobody was known to be without the library."""
        self._seen: dict[GpuUuid, int] = {}
        """Unexplained, but for what is known, when it was looked last, or less since."""
        self._ticks = 0
        """Of `_LOOK_S`, since it was looked."""
        self._loaded: dict[HostPid, float] = {}
        """Have the library in them and no control socket, and since when that was seen."""

    async def run(self) -> None:
        """Task body; ends by cancellation."""
        while self._processes is not None:
            await asyncio.sleep(_LOOK_S)
            if self._worth_a_look():
                await self.refresh()

    async def refresh(self) -> None:
        """Bring the ledger up to date. Who asks while somebody else's look is under way gets that one's."""
        if self._processes is None:
            return
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look(self._processes))
        await asyncio.shield(self._looking)

    def _worth_a_look(self) -> bool:
        now = self._unexplained(but_known=True)
        grown = any(size >= self._seen.get(uuid, 0) + self._noise_bytes for uuid, size in now.items())
        self._seen = {uuid: min(size, self._seen.get(uuid, size)) for uuid, size in now.items()}
        self._ticks += 1
        return (
            grown or bool(self._loaded) or self._ticks >= _ANYWAY or any(entry.unmanaged for entry in self._entries())
        )

    def _entries(self) -> list[Entry]:
        """Those whose processes may hold VRAM now."""
        return [entry for entry in self._ledger.entries().values() if holds_unmanaged(entry)]

    def _unexplained(self, *, but_known: bool = False) -> dict[GpuUuid, int]:
        """In use and in no extent, in bytes. `but_known`: nor known to be unmanaged, so that what goes and what comes within a
        second don't look like nothing."""
        gpu = self._gpu
        if gpu is None:
            return {}
        extents = gpu.broker.resident_bytes
        booked = self._vram.resident
        return {
            each.uuid: each.total_bytes - each.free_bytes() - (booked(None, each) if but_known else extents(None, each))
            for each in gpu.gpus
        }

    async def _look(self, processes: ProcessList) -> None:
        entries = self._entries()
        trees = [(entry, tree) for entry in entries if (tree := self._tree(entry.name)) is not None]
        self._ticks = 0
        self._seen = self._unexplained(but_known=True)  # before: what grows meanwhile is worth another look
        bare, memory = await in_thread("look for processes without the library", lambda: self._find(trees, processes))
        now = self._unexplained()
        calm = {uuid: min(size, self._calm.get(uuid, size)) for uuid, size in now.items()}
        found = shares(bare, memory, {uuid: size - calm[uuid] for uuid, size in now.items()})
        self._calm = calm if bare else now
        for entry, _ in trees:
            current = self._ledger.get(entry.name)
            if current is None or (current.state, current.since) != (entry.state, entry.since):
                continue  # a switch has come between: the next look says
            has = found.get(entry.name, {})
            if not has and any(process.workload == entry.name and process.pid not in memory for process in bare):
                has = dict(current.unmanaged)  # an earlier agent knew it; there is nothing here to tell it by
            if has == dict(current.unmanaged):
                continue
            self._ledger.update(entry.name, unmanaged=has)
            if has and not current.unmanaged and entry.backend is Backend.BROKER:
                self._tell(entry.name, [process for process in bare if process.workload == entry.name], has)

    def _find(self, trees: Iterable[tuple[Entry, Tree]], processes: ProcessList) -> tuple[list[Bare], Memory]:
        """In a thread."""
        bare: list[Bare] = []
        loaded: dict[HostPid, float] = {}
        now = time.monotonic()
        for entry, tree in trees:
            chosen = entry.backend is Backend.DRIVER
            known = set() if chosen else {process.pid for process in cuda_processes(tree)}
            for pid in residual_pids(tree):
                if pid in known:
                    continue
                if not chosen and _has_library(pid):
                    loaded[pid] = self._loaded.get(pid, now)
                    if now - loaded[pid] < _HELLO_S:
                        continue
                process = procfs.stat(pid)
                if process is not None:
                    bare.append(Bare(entry.name, pid, process.name))
        self._loaded = loaded
        return bare, processes.memory_of([process.pid for process in bare])

    def _tell(self, name: WorkloadName, bare: list[Bare], has: Mapping[GpuUuid, int]) -> None:
        who = " and ".join(f"process {process.pid} ({process.name})" for process in bare[:3])
        who += f" and {len(bare) - 3} more" if len(bare) > 3 else ""
        self._events.record(
            "without-library",
            f"{who} uses the GPU without Kybernate's library: {format_size(sum(has.values()))} of VRAM that only the driver's "
            "checkpoint moves, slowly. Its command drops LD_PRELOAD or KYBERNATE_RUN_DIRECTORY, as `env -i`, sudo and static "
            "launchers do",
            workload=name,
            data={"bytes": sum(has.values()), "pids": [process.pid for process in bare]},
        )


def without_library(entry: Entry) -> bool:
    """Not by choice."""
    return bool(entry.unmanaged) and entry.backend is Backend.BROKER and not entry.ended


def _has_library(pid: HostPid) -> bool:
    try:
        return PRELOAD_NAME in Path(f"/proc/{pid}/maps").read_text(errors="replace")
    except OSError:
        return False
