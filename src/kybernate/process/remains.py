"""Which processes of workloads live below a state directory, whatever any ledger says: for whoever wants to leave none behind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from kybernate.model.errors import KybernateError, NotFound
from kybernate.model.types import HostPid, WorkloadName, workload_name
from kybernate.process.cgroups import WorkloadCgroup
from kybernate.process.records import RECORDS
from kybernate.process.tree import attach, sweep


def remains(workloads: Path) -> dict[WorkloadName, list[HostPid]]:
    """The processes of each workload that has some, its supervisor included. Blocks for milliseconds.

    Args:
        workloads: the directory of the run directories.
    """
    found = {}
    for name in sorted(set(_names(workloads))):
        if pids := _pids(workloads / name):
            found[name] = pids
    return found


def end_remains(run_directory: Path) -> None:
    """Kill them, frozen ones too.

    Raises:
        Busy: a process could not be killed in time.
    """
    try:
        attach(run_directory).remove()
    except NotFound:
        sweep(run_directory)


def _names(workloads: Path) -> Iterator[WorkloadName]:
    for directory in (workloads, workloads.parent / RECORDS):
        with contextlib.suppress(OSError):
            for path in directory.iterdir():
                with contextlib.suppress(KybernateError):
                    yield workload_name(path.name.removesuffix(".json"))


def _pids(run_directory: Path) -> list[HostPid]:
    pids: set[HostPid] = set()
    with contextlib.suppress(KybernateError, OSError):
        tree = attach(run_directory)
        pids.update(tree.pids(), tree.helpers(), [tree.supervisor_pid] if tree.alive else [])
    state_directory = run_directory.parents[1].resolve()
    for group in WorkloadCgroup.existing(state_directory=state_directory, name=WorkloadName(run_directory.name)):
        pids.update(group.pids(), group.helper_pids())  # of a launch that was cut off before its record was written
    return sorted(pids)
