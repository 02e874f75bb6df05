"""A paused workload written into a tier as a snapshot, and what hinders that, found before anything is done."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kybernate.agent.records.jobs import Jobs
from kybernate.agent.records.ledger import Entry
from kybernate.agent.records.views import program
from kybernate.agent.tiers.transfers import Transfers
from kybernate.agent.workloads.runtime import GpuRuntime
from kybernate.agent.workloads.threads import in_thread
from kybernate.agent.workloads.workloads import Workloads
from kybernate.engine.capture import StoredReport
from kybernate.engine.stored import Kind
from kybernate.engine.target import Target
from kybernate.model.errors import Unsupported
from kybernate.model.types import TierName, WorkloadName, WorkloadState
from kybernate.process.preflight import Connections, dumpable
from kybernate.settings import StoreSettings

_JOBS = {Kind.PARKED: "park", Kind.IMAGE: "snapshot"}
"""As orders are called."""


@dataclass(frozen=True, slots=True)
class DumpOptions:
    """What an order says of a workload's dump; None: as the settings have it."""

    connections: Connections | None = None
    """What becomes of connections to the outside."""
    allow_changes: bool | None = None
    """Whether it is dumped although something of it will be different afterwards."""

    @classmethod
    def of(cls, connections: str | None, allow_changes: bool | None) -> DumpOptions:
        """As the API has them."""
        return cls(None if connections is None else Connections(connections), allow_changes)


class SnapshotCapture:
    """Use it in the loop's thread."""

    def __init__(
        self,
        *,
        jobs: Jobs,
        workloads: Workloads,
        transfers: Transfers,
        defaults: StoreSettings,
        gpu_directories: Sequence[str],
        port_of: Callable[[WorkloadName], int | None],
    ) -> None:
        """
        Args:
            defaults: what is done where an order doesn't say.
            gpu_directories: file systems that simulated GPUs are.
            port_of: where a workload is asked through its request gate: who is connected there leaves before a pause.
        """
        self._jobs = jobs
        self._workloads = workloads
        self._transfers = transfers
        self._defaults = defaults
        self._gpu_directories = gpu_directories
        self._port_of = port_of

    def refuse_early(self, entry: Entry) -> None:
        """What can be said before anything is done. Raises Unsupported."""
        if entry.external:
            raise Unsupported(
                f"process {entry.name.removeprefix('pid-')} was not started by Kybernate, so it stays in memory",
                hint="start it with `kybernate run`",
            )

    async def refuse_undumpable(self, entry: Entry, options: DumpOptions) -> None:
        """Of one that runs: what hinders a dump is found before it is paused, as far as it can be. Raises Unsupported."""
        tree = self._workloads.tree(entry.name)
        if entry.state is not WorkloadState.RUNNING or tree is None:
            return
        asked_at = self._port_of(entry.name)
        problems = await in_thread(
            f"look at {entry.name}",
            lambda: dumpable(
                tree,
                connections=self._connections(options),
                allow_changes=self._allow_changes(options),
                gpu_released=False,
                asked_at=asked_at,
                gpu_directories=list(self._gpu_directories),
            ),
        )
        if problems:
            more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise Unsupported(
                f"workload {entry.name} can't be dumped, so it can't leave memory: {'; '.join(problems[:3])}{more}",
                hint="it runs on; `kybernate pause` keeps it in RAM",
            )

    async def write(
        self,
        gpu: GpuRuntime,
        entry: Entry,
        target: Target,
        tier: TierName,
        snapshot: str,
        *,
        kind: Kind,
        options: DumpOptions,
        by_itself: bool = False,
    ) -> StoredReport:
        """In the workload's owner task.

        Args:
            by_itself: no order of a person: an order may stop it.

        Raises:
            Unsupported: it can't be dumped. NoRoom: the tier is full. TierAway and others of the store, Cancelled.
        """
        with self._jobs.begin(_JOBS[kind], entry.name, yielding=by_itself) as job:
            return await in_thread(
                f"{_JOBS[kind]} {entry.name}",
                lambda: self._transfers.with_space(
                    tier,
                    lambda space: gpu.engine.snapshot(
                        target,
                        space,
                        snapshot,
                        kind=kind,
                        labels=_labels_of(entry, kind),
                        progress=job.tell,
                        cancel=job.stop,
                        connections=self._connections(options),
                        allow_changes=self._allow_changes(options),
                    ),
                ),
            )

    def _connections(self, options: DumpOptions) -> Connections:
        return options.connections or self._defaults.connections

    def _allow_changes(self, options: DumpOptions) -> bool:
        return self._defaults.allow_changes if options.allow_changes is None else options.allow_changes


def _labels_of(entry: Entry, kind: Kind) -> dict[str, str]:
    """What a listing shows of a snapshot, and what an agent needs that never saw the workload. No command line: that may
    hold secrets, and lies encrypted with the processes' images."""
    return {
        "kind": kind,
        "workload": entry.name,
        "uid": str(entry.uid),
        "gid": str(entry.gid),
        "backend": entry.backend,
        "program": program(entry.argv) if entry.argv else "",
        "evicted": json.dumps(dict(entry.evicted)),
        "unmanaged": json.dumps(dict(entry.unmanaged)),
    }
