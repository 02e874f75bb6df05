"""What the engine is to work on, found out at the moment it is asked: which processes of a tree have the preload library.

Nothing is remembered from the processes' hello: after a restart of the agent, after a fork or an exec, the control sockets
in the run directory and the pids of the tree are the truth.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass

from kybernate.agent.records.ledger import Entry
from kybernate.agent.workloads.threads import in_thread
from kybernate.engine import target
from kybernate.engine.target import CudaProcess, Target
from kybernate.model.types import Backend, HostPid, WorkloadName
from kybernate.process.tree import CONTROL, Tree


@dataclass(frozen=True, slots=True)
class ExternalProcess:
    """A process that we did not start. There is no cgroup to freeze it by: its checkpointed CUDA calls wait by themselves."""

    pid: HostPid

    def pids(self) -> list[HostPid]:
        return [self.pid]

    def freeze(self, timeout_s: float) -> None:
        """Does nothing; see the class."""

    def thaw(self) -> None:
        """Does nothing."""

    @property
    def frozen(self) -> bool:
        return False


def target_of(entry: Entry, tree: Tree | None) -> Target:
    """The engine's view of a workload now. `tree` is None for an external process."""
    members: target.Tree = ExternalProcess(external_pid(entry.name)) if tree is None else tree
    broker = tree is not None and entry.backend is Backend.BROKER
    processes = cuda_processes(tree) if tree is not None and broker else []
    return Target(name=entry.name, tree=members, processes=processes, backend=entry.backend)


async def look_at(entry: Entry, tree: Tree | None) -> Target:
    """`target_of`, without holding up the loop."""
    return await in_thread(f"look at {entry.name}", lambda: target_of(entry, tree))


def cuda_processes(tree: Tree) -> list[CudaProcess]:
    """The processes of the tree that have a control socket."""
    found = []
    for pid in tree.pids():
        inside = tree.inside_pid(pid)
        if inside is None:
            continue
        path = tree.run_directory / CONTROL / f"{inside}.sock"
        try:
            # The workload's own user may write in that directory: only a real socket counts, not a link to one.
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                found.append(CudaProcess(pid=pid, control_path=path))
        except OSError:
            continue
    return found


def external_name(pid: int) -> WorkloadName:
    return WorkloadName(f"pid-{pid}")


def is_external_name(name: str) -> bool:
    """No workload of ours may have such a name: who may pause it is decided by the process that has the pid."""
    return re.fullmatch(r"pid-\d+", name) is not None


def external_pid(name: WorkloadName) -> HostPid:
    return HostPid(int(name.removeprefix("pid-")))
