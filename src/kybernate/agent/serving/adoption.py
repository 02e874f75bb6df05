"""Models and jobs that run already when the agent starts: those that no worker said to be open are asked whether they are ready."""

from __future__ import annotations

from kybernate.agent.serving.configuration import CurrentConfiguration
from kybernate.agent.serving.lease_table import LeaseTable
from kybernate.agent.serving.leases import Leases
from kybernate.agent.serving.policy_start import MEET_S
from kybernate.agent.serving.readiness import Readiness
from kybernate.agent.serving.ready_watch import ReadyWatch
from kybernate.agent.workloads.tasks import Tasks


class Adoption:
    """Use it in the loop's thread."""

    def __init__(
        self,
        *,
        current: CurrentConfiguration,
        leases: Leases,
        table: LeaseTable,
        readiness: Readiness,
        ready_watch: ReadyWatch,
        tasks: Tasks,
    ) -> None:
        self._current = current
        self._leases = leases
        self._table = table
        self._readiness = readiness
        self._ready_watch = ready_watch
        self._tasks = tasks

    def begin(self) -> None:
        self._tasks.keep(self._run, name="serving")

    async def _run(self) -> None:
        await self._leases.meet(MEET_S)
        for name, served in self._current.served.items():
            if not self._readiness.runs(name):
                continue
            if served.probe is not None and not self._table.is_open(name):
                self._ready_watch.begin(served, None)
            self._ready_watch.on_ready(name)
