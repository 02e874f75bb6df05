"""The ledger: what the agent knows about each workload.

One thread (the event loop's) writes; entries are frozen and replaced as a whole, so the broker's threads may
read `entry()` and `entries()` at any time without a lock. A read from another thread is advice only: whatever changes a
workload decides again inside its owner task. Every change goes to the observers (events, server-sent events, the database).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol, TypedDict, Unpack

from kybernate.agent.records.lifecycle import ENDED, Event, next_state
from kybernate.model.api import RunRequest
from kybernate.model.errors import Conflict, NotFound
from kybernate.model.types import Backend, Depth, EndedBy, GpuUuid, SwitchReport, TierName, WorkloadName, WorkloadState

USER = "user"
ARBITER = "arbiter"
RECOVERY = "recovery"
"""Who paused a workload: only those the arbiter paused are resumed by it. RECOVERY: a switch failed, and neither its end
nor its undo was possible for want of room or of an answer; that is tried again and again."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One workload. Times are seconds since the epoch, sizes bytes."""

    name: WorkloadName
    state: WorkloadState
    since: float
    """When it came into this state."""
    backend: Backend
    last_use: float
    """When it last began to run or asked for memory; the arbiter pauses the least recently used first."""
    running_since: float = 0.0
    reason: str = ""
    depth: Depth | None = None
    external: bool = False
    argv: tuple[str, ...] = ()
    directory: str = ""
    uid: int = 0
    gid: int = 0
    paused_by: str | None = None
    evicted: Mapping[GpuUuid, int] = field(default_factory=dict)
    """What it needs back on each GPU when it is resumed. Empty while it runs."""
    unmanaged: Mapping[GpuUuid, int] = field(default_factory=dict)
    """What its processes hold on each GPU without our library (vram/unmanaged.py). While it is paused: what of `evicted` the driver
    itself brings back."""
    held: Mapping[GpuUuid, int] = field(default_factory=dict)
    """What it gave up on each GPU and is not free all the same (vram/vram_leaks.py)."""
    pids: tuple[int, ...] = ()
    """CUDA processes at the time of the pause, for an agent that comes after this one."""
    exit_status: int | None = None
    ended_by: EndedBy | None = None
    """Set when its end was ordered, or came; None before, of one that is lost, and in records of older agents."""
    tier: TierName = TierName.RAM
    """Where it lies while it is paused. Other than RAM: none of its processes is there, and what is found under its name is
    a leftover."""
    snapshot: str | None = None
    """Its name in the store. With the tier RAM: an equal copy, or nothing, of what is paused, and to be deleted once it runs."""
    stale: tuple[str, ...] = ()
    """Snapshots of states it has left behind, still to be deleted."""
    also: tuple[TierName, ...] = ()
    """Other tiers into which an equal copy of the snapshot was put by an order."""
    kept: tuple[str, ...] = ()
    """Snapshots of states that could not be brought back, or that were overtaken elsewhere: nobody's to resume any more, and
    deleted with the workload only."""
    image: str | None = None
    """Which image it was cloned from."""
    cold_start: RunRequest | None = None
    """How to start it anew should no copy of its state be usable; None: never."""
    last_pause: SwitchReport | None = None
    last_resume: SwitchReport | None = None

    @property
    def ended(self) -> bool:
        return self.state in ENDED


class Changes(TypedDict, total=False):
    """Fields of an entry that change with a state, or by themselves; what they mean is said there."""

    reason: str
    depth: Depth | None
    argv: tuple[str, ...]
    directory: str
    last_use: float
    running_since: float
    paused_by: str | None
    evicted: Mapping[GpuUuid, int]
    unmanaged: Mapping[GpuUuid, int]
    held: Mapping[GpuUuid, int]
    pids: tuple[int, ...]
    exit_status: int | None
    ended_by: EndedBy | None
    tier: TierName
    snapshot: str | None
    stale: tuple[str, ...]
    also: tuple[TierName, ...]
    kept: tuple[str, ...]
    last_pause: SwitchReport | None
    last_resume: SwitchReport | None


Observer = Callable[[Entry | None, Entry | None], None]
"""Called in the loop's thread with the entry before and after; None where there is none."""


class Flush(Protocol):
    """See `LedgerRows.flush`."""

    def __call__(self, *, refuse: bool = False) -> Awaitable[None]: ...


class Ledger:
    """All entries by name. Create and change it in one thread."""

    def __init__(self, *, clock: Callable[[], float], flush: Flush) -> None:
        self._clock = clock
        self._flush = flush
        self._entries: Mapping[WorkloadName, Entry] = MappingProxyType({})
        self._observers: tuple[Observer, ...] = ()

    def observed_by(self, observers: Sequence[Observer]) -> None:
        """From now on each change is told to these, in this order. Once, before the first change."""
        assert not self._observers
        self._observers = tuple(observers)

    async def flush(self, *, refuse: bool = False) -> None:
        """Returns once everything that it says is on disk.

        Args:
            refuse: for what begins with it, and can still be left alone.

        Raises:
            NoRoom: with `refuse`, where it isn't on the disk for want of room there.
        """
        await self._flush(refuse=refuse)

    def entries(self) -> Mapping[WorkloadName, Entry]:
        """A snapshot: never changes after it was handed out."""
        return self._entries

    def get(self, name: WorkloadName) -> Entry | None:
        return self._entries.get(name)

    def entry(self, name: WorkloadName) -> Entry:
        """Raises NotFound."""
        found = self._entries.get(name)
        if found is None:
            raise NotFound(f"no workload named {name!r}", hint="`kybernate ps` lists them")
        return found

    def add(self, entry: Entry) -> Entry:
        """A new workload; takes the place of an ended one of that name.

        Raises:
            Conflict: a workload of that name is alive.
        """
        old = self._entries.get(entry.name)
        if old is not None and not old.ended:
            remove = " --remove" if old.tier is not TierName.RAM else ""
            raise Conflict(
                f"a workload named {entry.name!r} is {old.state} already",
                hint=f"choose another name, or `kybernate stop{remove} {entry.name}` first",
            )
        self._put(old, entry)
        return entry

    def apply(self, name: WorkloadName, event: Event, **changes: Unpack[Changes]) -> Entry:
        """Move to the next state and set further fields with it. One that stays in its state, as when a new agent finds it as it
        was, has been in it since the same moment.

        Raises:
            NotFound: no such workload.
            Conflict: not from this state.
        """
        old = self.entry(name)
        state = next_state(old.state, event)
        since = old.since if state is old.state else self._clock()
        new = dataclasses.replace(old, state=state, since=since, **changes)
        self._put(old, new)
        return new

    def update(self, name: WorkloadName, **changes: Unpack[Changes]) -> None:
        """Set fields without a change of state. Unknown names are ignored: the workload may just have gone."""
        old = self._entries.get(name)
        if old is not None:
            self._put(old, dataclasses.replace(old, **changes))

    def remove(self, name: WorkloadName) -> None:
        """Raises NotFound, and Conflict while it is alive."""
        old = self.entry(name)
        if not old.ended:
            raise Conflict(
                f"workload {name!r} is {old.state}", hint=f"`kybernate stop --remove {name}` ends and removes it"
            )
        self._put(old, None)

    def release(self, name: WorkloadName) -> None:
        """Take out an external process that runs again: it was never ours. Raises NotFound, and Conflict for any other."""
        old = self.entry(name)
        if not old.external or old.state is not WorkloadState.RUNNING:
            raise Conflict(f"workload {name!r} is {old.state} and stays in the ledger")
        self._put(old, None)

    def _put(self, old: Entry | None, new: Entry | None) -> None:
        entries = dict(self._entries)
        if new is None:
            assert old is not None
            del entries[old.name]
        else:
            entries[new.name] = new
        self._entries = MappingProxyType(entries)
        for observer in self._observers:
            observer(old, new)


def refuse_ended(entry: Entry, what: str) -> None:
    """Raises Conflict: it has ended or is about to, and can't be, in the past participle, `what`."""
    if entry.ended or entry.state is WorkloadState.STOPPING:
        raise Conflict(
            f"workload {entry.name} is {entry.state} and can't be {what}",
            hint=f"`kybernate explain {entry.name}` says why; run it again",
        )
