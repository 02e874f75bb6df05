"""What serving does at each change of the ledger."""

from __future__ import annotations

from collections.abc import Callable

from kybernate.agent.records.ledger import Entry
from kybernate.agent.serving.leases import Leases
from kybernate.agent.serving.observe import Observations
from kybernate.agent.serving.prefetching import Prefetching
from kybernate.agent.serving.status_board import StatusBoard
from kybernate.agent.serving.user_orders import UserOrders
from kybernate.agent.serving.wake import Wake


class LedgerWatch:
    """Use it in the loop's thread. It does nothing before `begin`: the statistics are read and the recovery is over then."""

    def __init__(
        self,
        *,
        leases: Leases,
        prefetching: Prefetching,
        observations: Observations,
        user_orders: UserOrders,
        board: StatusBoard,
        clock: Callable[[], float],
        wake: Wake,
    ) -> None:
        self._leases = leases
        self._prefetching = prefetching
        self._observations = observations
        self._user_orders = user_orders
        self._board = board
        self._clock = clock
        self._wake = wake
        self._begun = False

    def begin(self) -> None:
        """From now on changes count."""
        self._begun = True

    def end(self) -> None:
        """The agent goes down: what was counted is written."""
        self._observations.write(self._clock())

    def on_changed(self, old: Entry | None, new: Entry | None) -> None:
        """Observer of the ledger."""
        if not self._begun:
            return
        name = new.name if new is not None else old.name if old is not None else None
        if name is not None and (new is None or new.ended):
            self._leases.on_ended(name)
        self._prefetching.on_changed(old, new)
        self._observations.poll(self._clock())
        if new is not None:
            self._observations.on_changed(old, new)
            self._user_orders.on_changed(old, new)
        self._wake()
        self._board.update_all()
