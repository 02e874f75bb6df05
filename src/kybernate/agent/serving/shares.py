"""A model's concurrency, divided among the workers by who has how many requests."""

from __future__ import annotations

from dataclasses import dataclass, field

from kybernate.agent.serving.worker_load import WorkerLoads, shares
from kybernate.agent.serving.workers import Workers
from kybernate.model.messages import Share
from kybernate.model.types import WorkloadName


@dataclass(slots=True)
class _Limit:
    concurrency: int
    granted: dict[int, int] = field(default_factory=dict)
    """By worker."""


class Shares:
    """Use it in the loop's thread."""

    def __init__(self, *, workers: Workers, loads: WorkerLoads) -> None:
        self._workers = workers
        self._loads = loads
        self._limits: dict[WorkloadName, _Limit] = {}

    def limit(self, name: WorkloadName, concurrency: int) -> None:
        """From now on a model gets so many requests at once; 0: as many as come."""
        known = self._limits.get(name)
        if known is None or known.concurrency != concurrency:
            self._limits[name] = _Limit(concurrency)
            self.divide(name)

    def drop(self, name: WorkloadName) -> None:
        """It is no model any more."""
        self._limits.pop(name, None)

    def divide(self, name: WorkloadName) -> None:
        """Anew, by what the workers last said; each whose share changes is told."""
        limit = self._limits.get(name)
        if limit is None or not limit.concurrency:
            return
        granted = {pid: limit.granted.get(pid, 0) for pid in self._workers.pids()}
        if not granted:
            return
        new = shares(limit.concurrency, self._loads.by_worker(name), granted)
        for pid in sorted(new, key=lambda pid: new[pid] - granted[pid]):  # less for some before more for others
            if limit.granted.get(pid) != new[pid]:
                self._workers.tell(pid, Share(model=name, concurrency=new[pid]))
        limit.granted = new

    def divide_all(self) -> None:
        for name in list(self._limits):
            self.divide(name)

    def on_disconnected(self, pid: int) -> None:
        """A worker has gone: what it had is the others'."""
        for name, limit in list(self._limits.items()):
            if limit.granted.pop(pid, None) is not None:
                self.divide(name)
