"""Starting a workload's processes: from what is ordered to how it is launched, and the launch itself."""

from __future__ import annotations

import contextlib
import logging
import shutil
from pathlib import Path

from kybernate.agent.records.ledger import Entry
from kybernate.agent.workloads.environment import Simulation, workload_environment
from kybernate.agent.workloads.runtime import GpuRuntime
from kybernate.model.api import RunRequest
from kybernate.model.caller import Caller
from kybernate.model.errors import KybernateError, NotFound
from kybernate.model.layout import StateDirectory
from kybernate.model.native import preload_library
from kybernate.model.types import Backend, WorkloadName, WorkloadState, workload_name
from kybernate.process.launching import launch
from kybernate.process.reports import FULL, full
from kybernate.process.specs import LaunchSpec, Network
from kybernate.process.tree import BROKER_SOCKET, Tree, attach, sweep

log = logging.getLogger(__name__)


class Launcher:
    """Run directories, and the processes in them. All but `spec` blocks: call it in a thread."""

    def __init__(
        self, *, state: StateDirectory, gpu: GpuRuntime | None, simulation: Simulation | None, output_bytes: int
    ) -> None:
        """`output_bytes`: what stays of a workload's output."""
        self._state = state
        self._gpu = gpu
        self._simulation = simulation
        self._output_bytes = output_bytes

    def spec(self, request: RunRequest, caller: Caller) -> LaunchSpec:
        """Raises BadInput for what can't be started."""
        name = workload_name(request.name)
        preload: Path | None = None
        if request.backend is Backend.BROKER and self._gpu is not None:
            preload = preload_library()
        run_directory = self._state.run_directory(name)
        return LaunchSpec(
            name=name,
            argv=tuple(request.argv),
            run_directory=run_directory,
            directory=Path(request.directory),
            environment=workload_environment(
                request.environment,
                name=name,
                run_directory=run_directory,
                preload=preload,
                simulation=self._simulation,
            ),
            uid=caller.uid,
            gid=caller.gid,
            groups=caller.groups,
            network=Network(request.network),
            isolated=request.isolated is not False,
            layers=[Path(layer) for layer in request.layers],
            io_uring=request.io_uring,
            output_bytes=self._output_bytes,
        )

    def launch(self, spec: LaunchSpec) -> Tree:
        """The run directory and the broker's socket are there before the process is. Raises what hinders it."""
        gpu = self._gpu
        self.clear(spec.name)
        try:
            spec.run_directory.mkdir(parents=True, mode=0o755)
            if gpu is not None:
                gpu.broker.listen(spec.name, spec.run_directory / BROKER_SOCKET, uid=spec.uid, gid=spec.gid)
            return launch(spec)
        except BaseException as e:
            if gpu is not None:
                gpu.broker.stop_listening(spec.name)
            shutil.rmtree(spec.run_directory, ignore_errors=True)
            if isinstance(e, OSError) and e.errno in FULL:
                raise full(f"workload {spec.name} can't be started", spec.state_directory) from e
            raise

    def clear(self, name: WorkloadName) -> None:
        """Nothing of an earlier life of that name is left, which has ended or was lost."""
        if self._gpu is not None:
            self._gpu.engine.forget(name)
        with contextlib.suppress(NotFound):
            attach(self._state.run_directory(name)).remove()
        self.delete_directory(name)

    def delete_directory(self, name: WorkloadName) -> None:
        """Its run directory, and the cgroup of a launch that was cut off before anybody knew of its processes."""
        path = self._state.run_directory(name)
        try:
            sweep(path)
        except KybernateError as e:
            log.warning("something of workload %s is left: %s", name, e)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)

    def found_names(self) -> list[WorkloadName]:
        """Of all run directories that there are."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for path in self._state.workloads.iterdir():
                with contextlib.suppress(KybernateError):
                    found.append(workload_name(path.name))
        return found


def first_entry(request: RunRequest, name: WorkloadName, *, now: float, why: str) -> Entry:
    """Whose it is, and what an earlier life of that name has left, is the caller's to add."""
    return Entry(
        name=name,
        state=WorkloadState.STARTING,
        since=now,
        backend=request.backend,
        last_use=now,
        reason=why,
        argv=tuple(request.argv),
        directory=request.directory,
    )


def left_of(old: Entry | None) -> tuple[str, ...]:
    """Snapshots that a new life of the same name must neither resume nor delete."""
    if old is None:
        return ()
    return tuple(dict.fromkeys((*old.kept, *([] if old.snapshot is None else [old.snapshot]))))
