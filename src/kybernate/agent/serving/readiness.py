"""Whether a model that runs may be asked: its probe is asked, and then the workers may forward to it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from kybernate.agent.orders.ready import EndedUnready, HttpPath, wait_ready
from kybernate.agent.records.ledger import Ledger
from kybernate.agent.serving.leases import Arrival, Leases
from kybernate.agent.serving.surroundings import LiveWorkloads, StopWorkload
from kybernate.agent.serving.workload_stats import WorkloadStats
from kybernate.agent.workloads.threads import in_thread
from kybernate.model.errors import KybernateError
from kybernate.model.layout import StateDirectory
from kybernate.model.types import WorkloadName, WorkloadState
from kybernate.settings.specs import Probe, Served

_UNREADY_GRACE_S = 1.0
"""For one that isn't ready in its time, and is ended."""


class Readiness:
    """Use it in the loop's thread."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        workloads: LiveWorkloads,
        stop: StopWorkload,
        leases: Leases,
        stats: WorkloadStats,
        directory: StateDirectory,
    ) -> None:
        self._ledger = ledger
        self._workloads = workloads
        self._stop = stop
        self._leases = leases
        self._stats = stats
        self._directory = directory

    def runs(self, name: WorkloadName) -> bool:
        """It runs by the ledger, whatever is done to it just now."""
        entry = self._ledger.get(name)
        return entry is not None and entry.state is WorkloadState.RUNNING

    def is_settled(self, name: WorkloadName) -> bool:
        """It runs, and nobody does anything to it."""
        return self.runs(name) and self._workloads.idle(name)

    def was_ready(self, name: WorkloadName) -> bool:
        """Since its start."""
        return self._stats.of(name).was_ready

    def is_away(self, name: WorkloadName) -> bool:
        """Paused, or on its way back."""
        entry = self._ledger.get(name)
        return entry is not None and entry.state in (WorkloadState.PAUSED, WorkloadState.RESUMING)

    async def wait_ready(self, served: Served, probe: Probe) -> bool:
        """Wait until it may be asked. False: it was paused meanwhile.

        One that is paused answers nobody. Were it waited for all the same, whoever gave way for it would stay away
        that long, and in the end it would be stopped for something that is not its fault.

        Raises:
            KybernateError: it isn't ready in its time; it has been stopped then.
        """
        name = served.name
        tree = self._workloads.tree(name)
        if tree is None:
            entry = self._ledger.get(name)
            status = None if entry is None else entry.exit_status
            raise EndedUnready(name, status=status, run_directory=self._run_directory(name))
        path = None if probe.path is None else HttpPath("127.0.0.1", probe.port, probe.path)
        withdrawn = threading.Event()
        asking = asyncio.ensure_future(
            in_thread(
                f"ready {name}",
                lambda: wait_ready(
                    tree,
                    path=path,
                    command=probe.command,
                    timeout_s=probe.timeout_s,
                    port=probe.port,
                    withdrawn=withdrawn,
                ),
            )
        )
        pausing = asyncio.ensure_future(self._workloads.wait_until(lambda: self.is_away(name), None))
        try:
            # The thread may hang in a question to a frozen process for seconds: it is left to end by itself.
            await asyncio.wait((asking, pausing), return_when=asyncio.FIRST_COMPLETED)
            if pausing.done():
                return False
            await asking
        except KybernateError as e:
            entry = self._ledger.get(name)
            if entry is not None and not entry.ended:
                e.hint = f"stopped; models.{name}.ready_timeout, and `kybernate logs {name}`"
                await self._stop(name, grace_s=_UNREADY_GRACE_S, remove=False)
            raise
        finally:
            withdrawn.set()
            for each in (asking, pausing):
                each.cancel()
            await asyncio.gather(asking, pausing, return_exceptions=True)
        self._stats.update(name, was_ready=True)
        return True

    def open(self, name: WorkloadName, arrival: Arrival | None) -> None:
        """It runs and is ready: let the workers forward."""
        entry, tree = self._ledger.get(name), self._workloads.tree(name)
        if entry is None or entry.state is not WorkloadState.RUNNING or tree is None:
            return
        # A process in the network in which the model listens; None: the host's.
        network_pid = tree.supervisor_pid if tree.isolated else None
        self._leases.open(name, network_pid=network_pid, arrival=arrival)

    def _run_directory(self, name: WorkloadName) -> Path:
        return self._directory.run_directory(name)
