"""From what is ordered to run to how it is launched, and to its first entry in the ledger."""

from __future__ import annotations

from pathlib import Path

from kybernate.agent.gear import Gear
from kybernate.agent.records.ledger import Entry
from kybernate.agent.workloads.environment import workload_environment
from kybernate.model.api import RunRequest
from kybernate.model.caller import Caller
from kybernate.model.native import preload_library
from kybernate.model.types import Backend, WorkloadName, WorkloadState, workload_name
from kybernate.process.specs import LaunchSpec, Network


def launch_spec(gear: Gear, request: RunRequest, caller: Caller) -> LaunchSpec:
    """Raises BadInput for what can't be started."""
    name = workload_name(request.name)
    preload: Path | None = None
    if request.backend is Backend.BROKER and gear.gpu is not None:
        preload = preload_library()
    run_directory = gear.state.run_directory(name)
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
            simulation=gear.simulation,
        ),
        uid=caller.uid,
        gid=caller.gid,
        groups=caller.groups,
        network=Network(request.network),
        isolated=request.isolated is not False,
        layers=[Path(layer) for layer in request.layers],
        output_bytes=gear.settings.log.output,
    )


def starting(request: RunRequest, name: WorkloadName, *, now: float, why: str) -> Entry:
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
