"""Opens models once their probes say that they may be asked."""

from __future__ import annotations

from kybernate.agent.orders.ready import for_everybody
from kybernate.agent.records.events import Events
from kybernate.agent.serving.leases import Arrival
from kybernate.agent.serving.observe import Observations
from kybernate.agent.serving.readiness import Readiness
from kybernate.agent.serving.wake import Wake
from kybernate.agent.workloads.tasks import Tasks
from kybernate.model.errors import KybernateError
from kybernate.model.types import WorkloadName
from kybernate.settings.specs import Served


class ReadyWatch:
    """Use it in the loop's thread."""

    def __init__(
        self, *, readiness: Readiness, observations: Observations, events: Events, tasks: Tasks, wake: Wake
    ) -> None:
        self._readiness = readiness
        self._observations = observations
        self._events = events
        self._tasks = tasks
        self._wake = wake

    def begin(self, served: Served, arrival: Arrival | None) -> None:
        """It runs, and nobody knows whether it may be asked yet."""
        self._tasks.start(self._probe(served, arrival), name=f"ready {served.name}")

    def open(self, name: WorkloadName, arrival: Arrival | None) -> None:
        """It runs and is ready."""
        self._readiness.open(name, arrival)
        self.on_ready(name)

    def on_ready(self, name: WorkloadName) -> None:
        """It may be asked, or computes."""
        self._observations.on_ready(name)
        self._wake()

    def on_started(self, name: WorkloadName, seconds: float) -> None:
        """It came from its beginning or from its image, which took so long."""
        self._observations.on_resumed(name, None, seconds)

    async def _probe(self, served: Served, arrival: Arrival | None) -> None:
        assert served.probe is not None
        try:
            if not await self._readiness.wait_ready(served, served.probe):
                return  # it was paused; its resume asks again
        except KybernateError as e:
            self._events.record("not-ready", for_everybody(e), workload=served.name)
            return
        self.open(served.name, arrival)
