"""Models of the configuration as the workers know them, and what the file no longer names, which is ended."""

from __future__ import annotations

import asyncio
import logging

from kybernate.agent.records.events import Events
from kybernate.agent.records.ledger import Ledger
from kybernate.agent.serving.configuration import Configured
from kybernate.agent.serving.lease_table import LeaseTable
from kybernate.agent.serving.leases import Leases
from kybernate.agent.serving.shares import Shares
from kybernate.agent.serving.status_board import StatusBoard
from kybernate.agent.serving.surroundings import StopWorkload
from kybernate.agent.serving.workload_stats import WorkloadStats
from kybernate.agent.workloads.tasks import Tasks
from kybernate.model.errors import Busy, KybernateError
from kybernate.model.types import WorkloadName

log = logging.getLogger(__name__)

_GRACE_S = 10.0
"""For a program that the file no longer names."""


class ModelLeases:
    """Which models have a lease and a share of the workers, and what these are told of them. Use it in the loop's thread."""

    def __init__(self, *, table: LeaseTable, shares: Shares, leases: Leases, board: StatusBoard) -> None:
        self._table = table
        self._shares = shares
        self._leases = leases
        self._board = board

    def configure(self, new: Configured) -> None:
        """`new` is in force."""
        for served in new.served.values():
            if served.endpoint is not None:
                self._table.add(served.name)
                self._shares.limit(served.name, served.endpoint.limits.concurrency)

    def tell(self) -> None:
        """All workers, of the configuration and of every model."""
        self._board.tell_configuration()
        self._board.update_all()

    async def close(self, name: WorkloadName, *, grace_s: float) -> None:
        """One that the file no longer names: what is in flight ends, or its grace does."""
        try:
            await self._leases.close(name, timeout_s=grace_s)
        except Busy as e:
            log.warning("workload %s is taken out all the same: %s", name, e)
            self._leases.on_ended(name)
        self._board.forget(name)

    def drop(self, name: WorkloadName) -> None:
        """After `close`."""
        self._table.drop(name)
        self._shares.drop(name)


class Removal:
    """Models and jobs that the file no longer names: what is in flight ends, then they do. Use it in the loop's thread."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        events: Events,
        tasks: Tasks,
        stop: StopWorkload,
        stats: WorkloadStats,
        models: ModelLeases,
    ) -> None:
        self._ledger = ledger
        self._events = events
        self._tasks = tasks
        self._stop = stop
        self._stats = stats
        self._models = models

    async def take_out(self, names: list[WorkloadName], *, grace_s: float) -> None:
        """Returns once no requests are at them."""

        async def one(name: WorkloadName) -> None:
            await self._models.close(name, grace_s=grace_s)
            self._begin_to_end(name)

        await asyncio.gather(*(one(name) for name in names))
        for name in names:
            self._models.drop(name)

    def end_unnamed(self, new: Configured) -> None:
        """What an earlier agent began by its file, and this one's doesn't name."""
        for name, stats in list(self._stats.all().items()):
            if stats.fingerprint and name not in new.served:
                self._begin_to_end(name)

    def _begin_to_end(self, name: WorkloadName) -> None:
        self._tasks.start(self._end(name), name=f"take out {name}")

    async def _end(self, name: WorkloadName) -> None:
        entry = self._ledger.get(name)
        self._stats.update(name, fingerprint="", done=False)  # should it be named again, it begins anew
        if entry is None or entry.ended:
            return
        self._events.record("reconfigured", "ended, since the file no longer names it", workload=name)
        try:
            await self._stop(name, grace_s=_GRACE_S, remove=False)
        except KybernateError as e:
            log.warning("workload %s, which the file no longer names: %s", name, e)
