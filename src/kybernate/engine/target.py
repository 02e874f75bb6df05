"""What the engine works on: a workload's process tree and the CUDA processes in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kybernate.cuda.control import Control
from kybernate.model.types import Backend, HostPid, WorkloadName


class Tree(Protocol):
    """The process side of a workload, as kybernate.process.Tree gives it."""

    def pids(self) -> list[HostPid]: ...
    def freeze(self, timeout_s: float) -> None: ...
    def thaw(self) -> None: ...
    @property
    def frozen(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class CudaProcess:
    """A process with the preload library in it."""

    pid: HostPid
    control_path: Path
    """Its control socket, as the agent can reach it."""

    def control(self, *, timeout_s: float = 30.0) -> Control:
        """A connection to be; it is refused where another process listens there."""
        return Control(self.control_path, timeout_s=timeout_s, pid=self.pid)


@dataclass(frozen=True, slots=True)
class Target:
    name: WorkloadName
    tree: Tree
    processes: Sequence[CudaProcess]
    """In the order they said hello. Empty for the driver backend."""
    backend: Backend


def residual_pids(tree: Tree) -> list[HostPid]:
    """The processes of a tree that hold CUDA state.

    The driver names its threads cuda*; a child that merely inherited descriptors by fork has none of them, and asking
    the driver about it would wait for an answer that never comes.
    """
    return [pid for pid in tree.pids() if _has_driver_thread(pid)]


def _has_driver_thread(pid: HostPid) -> bool:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return False
    for task in tasks:
        try:
            if (task / "comm").read_text().startswith("cuda"):
                return True
        except OSError:
            continue
    return False
