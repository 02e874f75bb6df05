"""Leases: which model the workers may forward to, and the way back: closed, drained, and only then paused.

Whoever pauses a model asks `close` first, in the model's owner task: a person's order, the arbiter, an image. It holds new requests
and waits until no worker is connected to the model any more. `epoch` counts openings and goes on growing over restarts of the
agent, since it begins with the time.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from kybernate.agent.serving.worker_load import Loads, shares
from kybernate.agent.serving.workers import Workers
from kybernate.model.errors import Busy
from kybernate.model.messages import Close, Open, Refuse, Share
from kybernate.model.types import WorkloadName

log = logging.getLogger(__name__)

_MEETING_S = 5.0
"""How long a worker that lives may take to connect before it is no longer waited for."""


class _State(enum.Enum):
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Came:
    """What a model's coming took, for headers and metrics of what was held for it."""

    waited_for: str
    seconds: float
    victims: tuple[WorkloadName, ...] = ()


@dataclass(slots=True)
class _Lease:
    state: _State = _State.CLOSED
    epoch: int = 0
    network_pid: int | None = None
    missing: set[int] = field(default_factory=set)
    """Workers that haven't drained yet."""
    drained: asyncio.Event = field(default_factory=asyncio.Event)
    closers: int = 0
    concurrency: int = 0
    granted: dict[int, int] = field(default_factory=dict)
    refusal: Refuse | None = None


class Gates:
    """Use it in the loop's thread."""

    def __init__(self, *, workers: Workers, loads: Loads, clock: Callable[[], float]) -> None:
        self._workers = workers
        self._loads = loads
        self._clock = clock
        self._epoch = int(clock() * 1000)
        self._leases: dict[WorkloadName, _Lease] = {}
        self.changed: Callable[[WorkloadName], None] = lambda _: None
        """Told of each model that opens or closes."""
        self._expected: set[int] = set()
        """Workers that live and haven't connected yet: what they forward to is their predecessor's word."""
        self._met = asyncio.Event()
        self._met.set()

    # -- which models there are --------------------------------------------------------------------------------------

    def serve(self, name: WorkloadName, *, concurrency: int) -> None:
        """A model that the configuration names; closed until it is opened."""
        lease = self._leases.setdefault(name, _Lease())
        if lease.concurrency != concurrency:
            lease.concurrency = concurrency
            lease.granted = {}
            self.share(name)

    def drop(self, name: WorkloadName) -> None:
        """It is no model any more. Close it first."""
        self._leases.pop(name, None)

    def is_open(self, name: WorkloadName) -> bool:
        lease = self._leases.get(name)
        return lease is not None and lease.state is _State.OPEN

    def refusal(self, name: WorkloadName) -> Refuse | None:
        lease = self._leases.get(name)
        return None if lease is None else lease.refusal

    # -- opening and closing -----------------------------------------------------------------------------------------

    def open(self, name: WorkloadName, *, network_pid: int | None, came: Came | None = None) -> None:
        """It runs and is ready: forward to it. An open one gets a new opening."""
        lease = self._leases.get(name)
        if lease is None:
            return
        self._epoch += 1
        lease.state, lease.epoch, lease.network_pid = _State.OPEN, self._epoch, network_pid
        lease.refusal = None
        lease.missing = set()
        lease.drained.set()
        for pid in self._workers.pids():
            self._tell_open(pid, name, lease, came)
        self.share(name)
        self.changed(name)

    def reopen(self, name: WorkloadName) -> None:
        """It was closed for a pause that did not come to be."""
        lease = self._leases.get(name)
        if lease is not None and lease.state is not _State.OPEN and lease.epoch:
            self.open(name, network_pid=lease.network_pid)

    async def close(self, name: WorkloadName, *, timeout_s: float, preempt: bool = False) -> None:
        """Return once nobody is connected to it any more. One that is no model, or closed, is fine.

        Raises:
            Busy: requests were in flight for longer; it is open again, unless somebody else still closes it.
        """
        lease = self._leases.get(name)
        if lease is None:
            return
        await self.meet(_MEETING_S)
        if lease.state is _State.CLOSED:
            return
        if lease.state is _State.OPEN:
            self._begin_to_close(name, lease, preempt=preempt)
        elif preempt:
            self._workers.tell_all(Close(model=name, epoch=lease.epoch, preempt=True))
        epoch = lease.epoch
        lease.closers += 1
        try:
            async with asyncio.timeout(max(0.0, timeout_s)):
                await lease.drained.wait()
        except TimeoutError:
            flying = self._loads.of(name, self._clock()).in_flight
            if lease.closers == 1 and lease.state is _State.CLOSING:
                self.reopen(name)
            what = f"{flying} request{'' if flying == 1 else 's'} in flight" if flying else "connections to it"
            raise Busy(
                f"workload {name} has {what}, which did not end within {timeout_s:g} s",
                hint="it goes on answering; try again, or give a longer --timeout",
            ) from None
        finally:
            lease.closers -= 1
        if lease.state is _State.OPEN and lease.epoch != epoch:
            raise Busy(f"workload {name} was opened again meanwhile", hint="try again")

    def hold(self, name: WorkloadName) -> None:
        """As `close`, and nobody waits for requests in flight."""
        lease = self._leases.get(name)
        if lease is not None and lease.state is _State.OPEN:
            self._begin_to_close(name, lease, preempt=False)

    def _begin_to_close(self, name: WorkloadName, lease: _Lease, *, preempt: bool) -> None:
        lease.state = _State.CLOSING
        lease.missing = set(self._workers.pids())
        lease.drained = asyncio.Event()
        self._workers.tell_all(Close(model=name, epoch=lease.epoch, preempt=preempt))
        self._settle(lease)
        self.changed(name)

    def gone(self, name: WorkloadName) -> None:
        """It has ended: nobody forwards to it, and there is nothing to drain."""
        lease = self._leases.get(name)
        if lease is None or lease.state is _State.CLOSED:
            return
        self._workers.tell_all(Close(model=name, epoch=lease.epoch, preempt=False))
        lease.state = _State.CLOSED
        lease.missing = set()
        lease.drained.set()
        self.changed(name)

    def refuse(self, name: WorkloadName, *, message: str, retry_after_s: float | None, status: int = 503) -> None:
        """It can't be had: what is held for it, and what comes until `Status` or `Open`, is answered so."""
        lease = self._leases.get(name)
        if lease is None or lease.state is _State.OPEN:
            return
        refusal = Refuse(model=name, status=status, message=message, retry_after_s=retry_after_s)
        if lease.refusal != refusal:
            lease.refusal = refusal
            self._workers.tell_all(refusal)

    def pardon(self, name: WorkloadName) -> bool:
        """It may be asked for again. Whether it was refused; say a `Status` then."""
        lease = self._leases.get(name)
        if lease is None or lease.refusal is None:
            return False
        lease.refusal = None
        return True

    # -- what workers say --------------------------------------------------------------------------------------------

    def expect(self, pids: set[int]) -> None:
        """These workers live and will say hello: until then nobody knows what they forward to."""
        self._expected = set(pids) - self._workers.pids()
        if self._expected:
            self._met.clear()

    def hello(self, pid: int, open_epochs: dict[str, int]) -> list[WorkloadName]:
        """Tell a worker what is open. Returns the models it forwards to, by a predecessor's word, that are closed here."""
        unknown = []
        for model, epoch in open_epochs.items():
            name = WorkloadName(model)
            self._epoch = max(self._epoch, epoch)
            lease = self._leases.get(name)
            if lease is None or lease.state is _State.OPEN:
                continue
            lease.epoch = max(lease.epoch, epoch)
            if lease.state is _State.CLOSED:
                unknown.append(name)
                lease.state, lease.drained = _State.CLOSING, asyncio.Event()
            else:
                self._workers.tell(pid, Close(model=name, epoch=lease.epoch))
            lease.missing.add(pid)
        self._expected.discard(pid)
        for name, lease in self._leases.items():
            if lease.state is _State.OPEN:
                self._tell_open(pid, name, lease, None)
            elif lease.refusal is not None:
                self._workers.tell(pid, lease.refusal)
            self.share(name)
        if not self._expected:
            self._met.set()
        return unknown

    def close_at(self, pid: int, name: WorkloadName) -> None:
        """Take back what a predecessor opened, at one worker."""
        lease = self._leases.get(name)
        if lease is not None and lease.state is not _State.OPEN:
            self._workers.tell(pid, Close(model=name, epoch=lease.epoch))

    def drained(self, pid: int, model: str, epoch: int) -> None:
        lease = self._leases.get(WorkloadName(model))
        if lease is not None and lease.state is _State.CLOSING and epoch >= lease.epoch:
            lease.missing.discard(pid)
            self._settle(lease)

    def worker_gone(self, pid: int) -> None:
        """Its connections have gone with it."""
        self._expected.discard(pid)
        if not self._expected:
            self._met.set()
        for name, lease in self._leases.items():
            if lease.state is _State.CLOSING:
                lease.missing.discard(pid)
                self._settle(lease)
            if lease.granted.pop(pid, None) is not None:
                self.share(name)

    def share(self, name: WorkloadName) -> None:
        """Divide a model's concurrency among the workers, by who has how many."""
        lease = self._leases.get(name)
        if lease is None or not lease.concurrency:
            return
        granted = {pid: lease.granted.get(pid, 0) for pid in self._workers.pids()}
        if not granted:
            return
        new = shares(lease.concurrency, self._loads.by_worker(name), granted)
        for pid in sorted(new, key=lambda pid: new[pid] - granted[pid]):  # less for some before more for others
            if lease.granted.get(pid) != new[pid]:
                self._workers.tell(pid, Share(model=name, concurrency=new[pid]))
        lease.granted = new

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

    @staticmethod
    def _settle(lease: _Lease) -> None:
        if not lease.missing and lease.state is _State.CLOSING:
            lease.state = _State.CLOSED
            lease.drained.set()

    def _tell_open(self, pid: int, name: WorkloadName, lease: _Lease, came: Came | None) -> None:
        self._workers.tell(
            pid,
            Open(
                model=name,
                epoch=lease.epoch,
                network_pid=lease.network_pid,
                waited_for=None if came is None else came.waited_for,
                seconds=0.0 if came is None else came.seconds,
                victims=() if came is None else came.victims,
            ),
        )
