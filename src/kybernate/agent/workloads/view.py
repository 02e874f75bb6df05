"""A workload as the API shows it: its entry, and what is known of it just now beyond that."""

from __future__ import annotations

from collections.abc import Callable

from kybernate.agent.records.jobs import Jobs
from kybernate.agent.records.ledger import Entry
from kybernate.agent.records.views import UnderWay, workload_view
from kybernate.agent.workloads.runtime import GpuRuntime
from kybernate.agent.workloads.workloads import Workloads
from kybernate.model.api import WorkloadView
from kybernate.model.types import WorkloadName


class WorkloadViews:
    """Use it in the loop's thread."""

    def __init__(
        self,
        *,
        workloads: Workloads,
        gpu: GpuRuntime | None,
        jobs: Jobs,
        resident_bytes: Callable[[WorkloadName], int],
    ) -> None:
        """`resident_bytes`: what a workload holds on all GPUs."""
        self._workloads = workloads
        self._gpu = gpu
        self._jobs = jobs
        self._resident_bytes = resident_bytes

    def of(self, entry: Entry) -> WorkloadView:
        name, gpu = entry.name, self._gpu
        tree, current = self._workloads.tree(name), self._workloads.current(name)
        pids = list(entry.pids) if tree is None else [int(pid) for pid in tree.pids()]
        return workload_view(
            entry,
            resident_bytes=0 if entry.ended else self._resident_bytes(name),
            pids=[] if entry.ended else pids,
            current=None if current is None else UnderWay(current.kind, current.began_at),
            progress=None if gpu is None else gpu.engine.progress(name),
            job=self._jobs.of(name),
            staged=gpu is not None and any(view.snapshot == entry.snapshot for view in gpu.engine.staged()),
        )
