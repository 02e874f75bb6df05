"""VRAM that a paused workload gave up and that is not free all the same, and who keeps it.

An extent lives as long as anybody has a descriptor of it. A process of the workload that runs without the preload library
(a helper that was sent descriptors, say) may have one, and the agent can't take it away; it can notice, say so, and keep
the books honest. After a pause the driver's free memory is compared with what our own books say; if something is missing,
the workload's processes are looked at.

Limits: what other users of the GPU take at the same moment looks the same, so it is said only if a process of the workload
has GPU memory or GPU devices open, or no other workload is at work. A process outside of the workload's tree is not found.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from kybernate.agent.records.events import Events
from kybernate.agent.records.ledger import Entry, Ledger
from kybernate.agent.vram.vram import Vram
from kybernate.agent.workloads.environment import Simulation
from kybernate.agent.workloads.tasks import Tasks
from kybernate.agent.workloads.threads import in_thread
from kybernate.model.quantities import format_size
from kybernate.model.types import CHUNK_BYTES, MIB, GpuUuid, HostPid, WorkloadName, WorkloadState
from kybernate.process import procfs

log = logging.getLogger(__name__)

_NOISE_BYTES = 64 * MIB
"""A real driver's own books move by some MiB."""
_LOOK_S = 0.1
_PATIENCE_S = 2.0
"""The driver frees a moment later than the last descriptor is closed."""
_AGAIN_S = 2.0
_QUIET = frozenset({WorkloadState.PAUSED, WorkloadState.EXITED, WorkloadState.LOST})


class VramLeaks:
    """An observer of the ledger: looks after each pause. Use it in the loop's thread."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        events: Events,
        vram: Vram,
        tasks: Tasks,
        simulation: Simulation | None,
        pids: Callable[[WorkloadName], Sequence[HostPid]],
    ) -> None:
        """`pids`: the processes of a workload; called in a thread."""
        self._ledger = ledger
        self._events = events
        self._vram = vram
        self._noise_bytes = _NOISE_BYTES if simulation is None else CHUNK_BYTES
        self._tasks = tasks
        self._pids = pids
        self._before: dict[WorkloadName, dict[GpuUuid, int]] = {}
        self._devices = _devices(simulation)

    def changed(self, old: Entry | None, new: Entry | None) -> None:
        """Observer of the ledger."""
        if new is None or old is None or old.state is new.state:
            return
        if new.state is WorkloadState.PAUSING and old.state is WorkloadState.RUNNING:
            self._before[new.name] = self._unaccounted()
        elif new.state is WorkloadState.PAUSED and old.state is WorkloadState.PAUSING:
            before = self._before.pop(new.name, None)
            if before is not None and new.evicted:
                self._tasks.start(self._look(new, before), name=f"VRAM given up by {new.name}")

    def _unaccounted(self) -> dict[GpuUuid, int]:
        """What is in use on each GPU and in none of our books: contexts, native memory, strangers."""
        return {
            gpu.uuid: gpu.total_bytes - gpu.free_bytes() - self._vram.resident(None, gpu)
            for gpu in self._vram.gpus.values()
        }

    async def _look(self, entry: Entry, before: dict[GpuUuid, int]) -> None:
        waited = 0.0
        while held := self._held(entry, before):
            if not self._still(entry):
                return
            if waited >= _PATIENCE_S:
                break
            await asyncio.sleep(_LOOK_S)
            waited += _LOOK_S
        if not held:
            return
        holders = await in_thread(f"look for holders of {entry.name}", lambda: self._holders(entry.name))
        others = [e for e in self._ledger.entries().values() if e.name != entry.name and e.state not in _QUIET]
        if not self._still(entry) or (not holders and others):
            return
        size = sum(held.values())
        who = ", ".join(f"process {pid} ({name})" for pid, name in holders) or "a process outside of it"
        text = f"{format_size(size)} of VRAM that it gave up are not free: {who} keeps them"
        self._ledger.update(entry.name, held=held)
        self._events.record(
            "vram-held", text, workload=entry.name, data={"bytes": size, "pids": [pid for pid, _ in holders]}
        )
        log.warning("workload %s: %s", entry.name, text)
        while self._still(entry) and (current_held := self._held(entry, before)):
            if current_held != held:
                held = current_held
                self._ledger.update(entry.name, held=held)
            await asyncio.sleep(_AGAIN_S)
        current = self._ledger.get(entry.name)
        if current is None or not current.held:
            return
        self._ledger.update(entry.name, held={})
        if self._still(entry):
            self._events.record("vram-free", "the VRAM that it gave up is free now", workload=entry.name)

    def _still(self, entry: Entry) -> bool:
        """It is in that very pause."""
        current = self._ledger.get(entry.name)
        return current is not None and current.state is WorkloadState.PAUSED and current.since == entry.since

    def _held(self, entry: Entry, before: dict[GpuUuid, int]) -> dict[GpuUuid, int]:
        now = self._unaccounted()
        held = {uuid: min(now[uuid] - before[uuid], size) for uuid, size in entry.evicted.items() if uuid in now}
        return {uuid: size for uuid, size in held.items() if size >= self._noise_bytes}

    def _holders(self, name: WorkloadName) -> list[tuple[HostPid, str]]:
        """Processes of the workload that have GPU memory or a GPU open."""
        holding = [pid for pid in self._pids(name) if self._holds(pid)]
        return [(pid, process.name) for pid in holding if (process := procfs.stat(pid)) is not None]

    def _holds(self, pid: HostPid) -> bool:
        with contextlib.suppress(OSError):
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(link.readlink()).startswith("/dev/nvidia") or link.stat().st_dev in self._devices:
                        return True
        return False


def _devices(simulation: Simulation | None) -> frozenset[int]:
    """The file systems that simulated GPUs are."""
    paths = [] if simulation is None else simulation.gpu_directories
    return frozenset(Path(path).stat().st_dev for path in paths if Path(path).is_mount())
