"""How much of each GPU's memory a process has: the driver's own list, NVML's, which counts contexts and all that is native.

On the simulated driver it is what a process has open on the tmpfs that a GPU is.

Limits: in a container NVML may list no process, or list pids of another pid namespace: who isn't listed is unknown here. A process
that is checkpointed has nothing. Graphics memory isn't listed.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from kybernate.cuda import simulated
from kybernate.model.types import GpuUuid, HostPid

log = logging.getLogger(__name__)

_BLOCK = 512
"""Bytes, of st_blocks."""
_UNKNOWN = (1 << 64) - 1
"""NVML's number for a size that it can't tell."""

Memory = Mapping[HostPid, Mapping[GpuUuid, int]]
"""Bytes on each GPU, by process."""


class ProcessList(Protocol):
    """Thread-safe; may take milliseconds."""

    def memory_of(self, pids: Iterable[HostPid]) -> Memory:
        """Of those that are listed; the others are left out."""


class DriverList:
    """NVML's list of the processes with a context."""

    def __init__(self, gpus: Sequence[GpuUuid]) -> None:
        self._gpus = gpus
        self._nvml: Any = None
        self._failed = ""

    def memory_of(self, pids: Iterable[HostPid]) -> Memory:
        wanted = {int(pid) for pid in pids}
        found: dict[HostPid, dict[GpuUuid, int]] = {}
        if not wanted:
            return found
        try:
            nvml = self._opened()
            for uuid in self._gpus:
                handle = nvml.device_get_handle_by_uuid(uuid)
                for process in nvml.device_get_compute_running_processes_v3(handle):
                    pid, used = int(process.pid), int(process.used_gpu_memory)
                    if pid in wanted and used != _UNKNOWN:
                        mine = found.setdefault(HostPid(pid), {})
                        mine[uuid] = mine.get(uuid, 0) + used
        except Exception as e:  # a library of the machine's: whatever it says, the workloads run
            if str(e) != self._failed:
                log.warning("NVML doesn't tell which processes use the GPUs: %s: %s", type(e).__name__, e)
            self._failed = str(e)
        return found

    def _opened(self) -> Any:
        if self._nvml is None:
            from cuda.bindings import nvml

            nvml.init_v2()
            self._nvml = nvml
        return self._nvml


class SimulatedList:
    """What processes have open on simulated GPUs. Nothing on a plain directory: its memory is accounted for by nobody."""

    def __init__(self, gpus: Sequence[simulated.SimulatedGpu]) -> None:
        self._gpus = {gpu.path.stat().st_dev: gpu.uuid for gpu in gpus if gpu.mounted}

    def memory_of(self, pids: Iterable[HostPid]) -> Memory:
        return {pid: self._of(pid) for pid in pids}

    def _of(self, pid: HostPid) -> dict[GpuUuid, int]:
        found: dict[GpuUuid, int] = {}
        seen: set[tuple[int, int]] = set()
        with contextlib.suppress(OSError):
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    file = link.stat()
                    uuid = self._gpus.get(file.st_dev)
                    if uuid is not None and (file.st_dev, file.st_ino) not in seen:
                        seen.add((file.st_dev, file.st_ino))
                        found[uuid] = found.get(uuid, 0) + file.st_blocks * _BLOCK
        return found
