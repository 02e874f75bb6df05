"""Leases: which model the workers may forward to, and the way back: closed, drained, and only then paused.

Whoever pauses a model asks `close` first, in the model's owner task: a person's order, the arbiter, an image. It holds new requests
and waits until no worker is connected to the model any more. `epoch` counts openings and goes on growing over restarts of the
agent, since it begins with the time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from kybernate.agent.serving.lease_table import Lease, LeaseState, LeaseTable
from kybernate.agent.serving.shares import Shares
from kybernate.agent.serving.worker_load import WorkerLoads
from kybernate.agent.serving.workers import Workers
from kybernate.model.errors import Busy
from kybernate.model.messages import Close, Open, Refuse
from kybernate.model.types import WorkloadName

log = logging.getLogger(__name__)

_MEETING_S = 5.0
"""How long a worker that lives may take to connect before it is no longer waited for."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """What a model's coming took, for headers and metrics of what was held for it."""

    waited_for: str
    seconds: float
    victims: tuple[WorkloadName, ...] = ()


class Leases:
    """Use it in the loop's thread."""

    def __init__(
        self,
        *,
        table: LeaseTable,
        shares: Shares,
        workers: Workers,
        loads: WorkerLoads,
        clock: Callable[[], float],
        on_change: Callable[[WorkloadName], None],
    ) -> None:
        """`on_change`: told of each model that opens or closes."""
        self._table = table
        self._shares = shares
        self._workers = workers
        self._loads = loads
        self._clock = clock
        self._on_change = on_change
        self._epoch = int(clock() * 1000)
        self._expected: set[int] = set()
        """Workers that live and haven't connected yet: what they forward to is their predecessor's word."""
        self._met = asyncio.Event()
        self._met.set()

    # -- opening and closing -----------------------------------------------------------------------------------------

    def open(self, name: WorkloadName, *, network_pid: int | None, arrival: Arrival | None = None) -> None:
        """It runs and is ready: forward to it. An open one gets a new opening."""
        lease = self._table.get(name)
        if lease is None:
            return
        self._epoch += 1
        lease.open(epoch=self._epoch, network_pid=network_pid)
        for pid in self._workers.pids():
            self._tell_open(pid, name, lease, arrival)
        self._shares.divide(name)
        self._on_change(name)

    def reopen(self, name: WorkloadName) -> None:
        """It was closed for a pause that did not come to be."""
        lease = self._table.get(name)
        if lease is not None and not lease.is_open and lease.epoch:
            self.open(name, network_pid=lease.network_pid)

    async def close(self, name: WorkloadName, *, timeout_s: float, preempt: bool = False) -> None:
        """Return once nobody is connected to it any more. One that is no model, or closed, is fine.

        Raises:
            Busy: requests were in flight for longer; it is open again, unless somebody else still closes it.
        """
        lease = self._table.get(name)
        if lease is None:
            return
        await self.meet(_MEETING_S)
        if lease.state is LeaseState.CLOSED:
            return
        if lease.state is LeaseState.OPEN:
            self._begin_to_close(name, lease, preempt=preempt)
        elif preempt:
            self._workers.tell_all(Close(model=name, epoch=lease.epoch, preempt=True))
        epoch = lease.epoch
        lease.wait()
        try:
            async with asyncio.timeout(max(0.0, timeout_s)):
                await lease.drained.wait()
        except TimeoutError:
            flying = self._loads.demand(name, self._clock()).in_flight
            if lease.closers == 1 and lease.state is LeaseState.CLOSING:
                self.reopen(name)
            what = f"{flying} request{'' if flying == 1 else 's'} in flight" if flying else "connections to it"
            raise Busy(
                f"workload {name} has {what}, which did not end within {timeout_s:g} s",
                hint="it goes on answering; try again, or give a longer --timeout",
            ) from None
        finally:
            lease.stop_waiting()
        if lease.is_open and lease.epoch != epoch:
            raise Busy(f"workload {name} was opened again meanwhile", hint="try again")

    async def close_before_stop(self, name: WorkloadName, grace_s: float) -> None:
        """A person ends a model: requests in flight get its grace, also those that somebody else lets end already."""
        try:
            await self.close(name, timeout_s=grace_s)
        except Busy as e:
            log.info("workload %s is stopped all the same: %s", name, e)
            self.on_ended(name)
        except asyncio.CancelledError:  # its grace was cut short
            self.on_ended(name)
            raise

    def hold(self, name: WorkloadName) -> None:
        """As `close`, and nobody waits for requests in flight."""
        lease = self._table.get(name)
        if lease is not None and lease.is_open:
            self._begin_to_close(name, lease, preempt=False)

    def _begin_to_close(self, name: WorkloadName, lease: Lease, *, preempt: bool) -> None:
        self._workers.tell_all(Close(model=name, epoch=lease.epoch, preempt=preempt))
        lease.begin_to_close(set(self._workers.pids()))
        self._on_change(name)

    def on_ended(self, name: WorkloadName) -> None:
        """The workload has ended: nobody forwards to it, and there is nothing to drain."""
        lease = self._table.get(name)
        if lease is None or lease.state is LeaseState.CLOSED:
            return
        self._workers.tell_all(Close(model=name, epoch=lease.epoch, preempt=False))
        lease.end()
        self._on_change(name)

    def refuse(self, name: WorkloadName, *, message: str, retry_after_s: float | None, status: int = 503) -> None:
        """It can't be had: what is held for it, and what comes until `Status` or `Open`, is answered so."""
        lease = self._table.get(name)
        if lease is None or lease.is_open:
            return
        refusal = Refuse(model=name, status=status, message=message, retry_after_s=retry_after_s)
        if lease.refusal != refusal:
            lease.refuse(refusal)
            self._workers.tell_all(refusal)

    def admit(self, name: WorkloadName) -> bool:
        """It may be asked for again. Whether it was refused; say a `Status` then."""
        lease = self._table.get(name)
        if lease is None or lease.refusal is None:
            return False
        lease.refuse(None)
        return True

    # -- what workers say --------------------------------------------------------------------------------------------

    def expect(self, pids: set[int]) -> None:
        """These workers live and will say hello: until then nobody knows what they forward to."""
        self._expected = set(pids) - self._workers.pids()
        if self._expected:
            self._met.clear()

    def on_hello(self, pid: int, open_epochs: dict[str, int]) -> list[WorkloadName]:
        """Tell a worker what is open. Returns the models it forwards to, by a predecessor's word, that are closed here."""
        unknown = []
        for model, epoch in open_epochs.items():
            name = WorkloadName(model)
            self._epoch = max(self._epoch, epoch)
            lease = self._table.get(name)
            if lease is None or lease.is_open:
                continue
            if lease.state is LeaseState.CLOSED:
                unknown.append(name)
                lease.adopt(pid, epoch)
            else:
                lease.adopt(pid, epoch)
                self._workers.tell(pid, Close(model=name, epoch=lease.epoch))
        self._expected.discard(pid)
        for name, lease in self._table:
            if lease.is_open:
                self._tell_open(pid, name, lease, None)
            elif lease.refusal is not None:
                self._workers.tell(pid, lease.refusal)
        self._shares.divide_all()
        if not self._expected:
            self._met.set()
        return unknown

    def close_at(self, pid: int, name: WorkloadName) -> None:
        """Take back what a predecessor opened, at one worker."""
        lease = self._table.get(name)
        if lease is not None and not lease.is_open:
            self._workers.tell(pid, Close(model=name, epoch=lease.epoch))

    def on_drained(self, pid: int, model: str, epoch: int) -> None:
        lease = self._table.get(WorkloadName(model))
        if lease is not None and epoch >= lease.epoch:
            lease.drained_at(pid)

    def on_disconnected(self, pid: int) -> None:
        """A worker's connections have gone with it."""
        self._expected.discard(pid)
        if not self._expected:
            self._met.set()
        for _, lease in self._table:
            lease.drained_at(pid)
        self._shares.on_disconnected(pid)

    async def meet(self, timeout_s: float) -> None:
        """Until every worker that lives is connected, or has had its time."""
        if self._met.is_set():
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._met.wait()
        except TimeoutError:
            log.warning("activator workers %s live and don't connect", sorted(self._expected))
            self._expected.clear()
            self._met.set()

    def _tell_open(self, pid: int, name: WorkloadName, lease: Lease, arrival: Arrival | None) -> None:
        self._workers.tell(
            pid,
            Open(
                model=name,
                epoch=lease.epoch,
                network_pid=lease.network_pid,
                waited_for=None if arrival is None else arrival.waited_for,
                seconds=0.0 if arrival is None else arrival.seconds,
                victims=() if arrival is None else arrival.victims,
            ),
        )
