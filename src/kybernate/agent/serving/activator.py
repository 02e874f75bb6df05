"""The activator as the rest of the agent sees it: its processes, and the socket on which they are told what to do."""

from __future__ import annotations

from pathlib import Path

from kybernate.agent.serving.address import Address
from kybernate.agent.serving.configuration import CurrentConfiguration
from kybernate.agent.serving.leases import Leases
from kybernate.agent.serving.processes import Processes, WorkerPaths
from kybernate.agent.serving.worker_events import WorkerEvents
from kybernate.agent.serving.workers import Workers
from kybernate.model.api_serving import WorkerView


class Activator:
    """Use it in the loop's thread."""

    def __init__(
        self,
        *,
        paths: WorkerPaths,
        current: CurrentConfiguration,
        workers: Workers,
        events: WorkerEvents,
        leases: Leases,
        processes: Processes,
    ) -> None:
        self._paths = paths
        self._current = current
        self._workers = workers
        self._events = events
        self._leases = leases
        self._processes = processes

    @property
    def address(self) -> Address | None:
        """None: there is no activator."""
        return self._processes.address

    @property
    def metrics_directory(self) -> Path:
        """Where workers count."""
        return self._paths.metrics

    async def begin(self) -> None:
        """Hear what workers say, those of a predecessor first. Raises BadInput where the socket can't be made."""
        await self._workers.listen(self._events)
        self._leases.expect(self._processes.adopt())

    async def wait_listening(self) -> None:
        """Until clients can connect to as many as are wanted; at once where there are to be none."""
        await self._processes.wait_listening()

    def missing(self) -> list[int]:
        """Numbers of workers that clients should be able to connect to by now."""
        return self._processes.missing()

    def notes(self) -> list[str]:
        """What isn't as it should be, a line each."""
        return [f"activator worker {each} doesn't listen; {self._paths.log} says why" for each in self.missing()]

    def views(self) -> list[WorkerView]:
        listening = self._workers.listening()
        return [
            WorkerView(worker=each.worker, pid=each.pid, connected=each.pid in listening)
            for each in self._processes.all()
        ]

    async def end(self) -> None:
        """Answers under way get their time, what is held is told to come again."""
        if self._processes.address is not None:
            await self._processes.end(grace_s=self._current.grace_s)
        await self._workers.close()
