"""What workers say, and what follows: which model they forward to, how much is asked, who has drained, who has gone."""

from __future__ import annotations

from collections.abc import Callable

from kybernate.agent.serving.leases import Leases
from kybernate.agent.serving.readiness import Readiness
from kybernate.agent.serving.ready_watch import ReadyWatch
from kybernate.agent.serving.shares import Shares
from kybernate.agent.serving.status_board import StatusBoard
from kybernate.agent.serving.wake import Wake
from kybernate.agent.serving.worker_load import WorkerLoads
from kybernate.model.messages import Drained, Hello, Load
from kybernate.model.types import WorkloadName


class WorkerEvents:
    """See `Listener` in workers.py. Use it in the loop's thread."""

    def __init__(
        self,
        *,
        board: StatusBoard,
        leases: Leases,
        loads: WorkerLoads,
        shares: Shares,
        readiness: Readiness,
        ready_watch: ReadyWatch,
        clock: Callable[[], float],
        wake: Wake,
    ) -> None:
        self._board = board
        self._leases = leases
        self._loads = loads
        self._shares = shares
        self._readiness = readiness
        self._ready_watch = ready_watch
        self._clock = clock
        self._wake = wake

    def on_hello(self, pid: int, hello: Hello) -> None:
        self._board.greet(pid)
        for name in self._leases.on_hello(pid, hello.open_epochs):
            if self._readiness.is_settled(name):
                # Its predecessor's word: it could be asked then, and it ran on.
                self._ready_watch.open(name, None)
            else:
                self._leases.close_at(pid, name)
        self._board.tell_all_to(pid)
        self._wake()

    def on_load(self, pid: int, load: Load) -> None:
        self._loads.update(pid, load, self._clock())
        self._shares.divide(WorkloadName(load.model))
        self._wake()

    def on_drained(self, pid: int, drained: Drained) -> None:
        self._leases.on_drained(pid, drained.model, drained.epoch)

    def on_disconnected(self, pid: int) -> None:
        self._loads.on_disconnected(pid)
        self._leases.on_disconnected(pid)
        self._wake()
