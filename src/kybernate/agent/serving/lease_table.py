"""Each model's lease: whether the workers may forward to it, which of them haven't drained yet, how its concurrency is divided."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Iterator
from dataclasses import dataclass, field

from kybernate.model.messages import Refuse
from kybernate.model.types import WorkloadName


class LeaseState(enum.Enum):
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


@dataclass(slots=True)
class Lease:
    """Of one model. leases.py changes it, shares.py its concurrency."""

    state: LeaseState = LeaseState.CLOSED
    epoch: int = 0
    network_pid: int | None = None
    missing: set[int] = field(default_factory=set)
    """Workers that haven't drained yet."""
    drained: asyncio.Event = field(default_factory=asyncio.Event)
    closers: int = 0
    """How many wait until it is drained."""
    refusal: Refuse | None = None

    @property
    def is_open(self) -> bool:
        return self.state is LeaseState.OPEN

    def open(self, *, epoch: int, network_pid: int | None) -> None:
        self.state, self.epoch, self.network_pid = LeaseState.OPEN, epoch, network_pid
        self.refusal = None
        self.missing = set()
        self.drained.set()

    def begin_to_close(self, workers: set[int]) -> None:
        """`workers`: those that must drain."""
        self.state = LeaseState.CLOSING
        self.missing = workers
        self.drained = asyncio.Event()
        self._settle()

    def adopt(self, worker: int, epoch: int) -> None:
        """A worker forwards to it, by a predecessor's word."""
        self.epoch = max(self.epoch, epoch)
        if self.state is LeaseState.CLOSED:
            self.state, self.drained = LeaseState.CLOSING, asyncio.Event()
        self.missing.add(worker)

    def drained_at(self, worker: int) -> None:
        """That worker isn't connected to it any more."""
        if self.state is LeaseState.CLOSING:
            self.missing.discard(worker)
            self._settle()

    def end(self) -> None:
        """It has ended: there is nothing to drain."""
        self.state = LeaseState.CLOSED
        self.missing = set()
        self.drained.set()

    def wait(self) -> None:
        """Somebody waits until it is drained."""
        self.closers += 1

    def stop_waiting(self) -> None:
        self.closers -= 1

    def refuse(self, refusal: Refuse | None) -> None:
        """None: it may be asked for again."""
        self.refusal = refusal

    def _settle(self) -> None:
        if not self.missing:
            self.state = LeaseState.CLOSED
            self.drained.set()


class LeaseTable:
    """The leases of all models of the configuration. Use it in the loop's thread."""

    def __init__(self) -> None:
        self._leases: dict[WorkloadName, Lease] = {}

    def __iter__(self) -> Iterator[tuple[WorkloadName, Lease]]:
        return iter(list(self._leases.items()))

    def get(self, name: WorkloadName) -> Lease | None:
        """None: the configuration names no such model."""
        return self._leases.get(name)

    def add(self, name: WorkloadName) -> Lease:
        """The lease of a model that the configuration names; closed until it is opened."""
        return self._leases.setdefault(name, Lease())

    def drop(self, name: WorkloadName) -> None:
        """It is no model any more. Close it first."""
        self._leases.pop(name, None)

    def is_open(self, name: WorkloadName) -> bool:
        lease = self._leases.get(name)
        return lease is not None and lease.is_open

    def refusal(self, name: WorkloadName) -> Refuse | None:
        lease = self._leases.get(name)
        return None if lease is None else lease.refusal
