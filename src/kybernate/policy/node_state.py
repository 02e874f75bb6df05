"""What a policy sees, and what it may answer.

Times are seconds on one clock, sizes bytes. Everything is frozen: a policy can't change what it sees, and the same state always
gets the same plan, in the agent, in the simulator and in a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kybernate.model.types import Class as Class
from kybernate.model.types import GpuUuid, TierName, WorkloadName, WorkloadState
from kybernate.model.types import Phase as Phase

PHASES = {
    WorkloadState.STARTING: Phase.COMING,
    WorkloadState.RUNNING: Phase.RESIDENT,
    WorkloadState.PAUSING: Phase.LEAVING,
    WorkloadState.PAUSED: Phase.AWAY,
    WorkloadState.RESUMING: Phase.COMING,
    WorkloadState.STOPPING: Phase.LEAVING,
    WorkloadState.EXITED: Phase.ABSENT,
    WorkloadState.LOST: Phase.ABSENT,
}
"""What a workload's state looks like to a policy, where nothing more is known of it."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds that a switch of this workload takes, by what was measured lately."""

    leave: float
    come: float
    """From where it lies now."""
    come_prefetched: float
    """From RAM, after it was prefetched."""


@dataclass(frozen=True, slots=True)
class Member:
    """One workload."""

    name: WorkloadName
    klass: Class
    priority: int
    """Higher is more important, within its class."""
    phase: Phase
    bytes: Mapping[GpuUuid, int]
    """What it holds on each GPU or, where it is away, needs back. What it will need, as far as known, where it is absent."""
    cost: Cost
    tier: TierName | None = None
    """Where it lies; None while it is resident or absent."""
    prefetched: bool = False
    waiting: int = 0
    """Requests held for it."""
    oldest_wait: float | None = None
    """When the oldest of them came."""
    in_flight: int = 0
    """Requests it works on. It isn't paused meanwhile unless its class may be preempted."""
    service_s: float | None = None
    """How long one request takes, moving average."""
    last_use: float = 0.0
    """When the last request came or ended; of a batch workload, when it last came."""
    since: float = 0.0
    """When it came into this phase."""
    wanted: bool = False
    """Shall run without being asked: a batch workload with work left, inside its schedule; a person's `resume`."""
    wanted_at: float | None = None
    """When its schedule will want it next, of one that isn't wanted now."""
    pausable: bool = True
    """False: refused lately, or can't be paused at all."""
    settling: bool = False
    """Not pausable now, but soon perhaps (it refused as busy, somebody works on it): worth waiting for."""
    pinned: bool = False
    """A person said that it stays as it is: neither paused nor resumed by itself."""
    idle_s: float | None = None
    """Given back after so long without a request, even if nobody needs the room. None: never."""


@dataclass(frozen=True, slots=True)
class NodeState:
    now: float
    members: Mapping[WorkloadName, Member]
    capacity: Mapping[GpuUuid, int]
    """Handed out at most."""
    free: Mapping[GpuUuid, int]
    """Of that, held by nobody and promised to nobody. What somebody LEAVING holds isn't free yet; what somebody COMING still
    needs is promised."""
    prefetch_free: int = 0
    """Host memory that prefetching may still take."""
    arrivals: tuple[tuple[float, WorkloadName], ...] = ()
    """The last requests that came, oldest first, some hundreds at most: what prefetching predicts from."""


@dataclass(frozen=True, slots=True)
class Bring:
    """Pause the victims, then let it come (start, resume).

    A victim that works on requests is closed first: no new ones, those in flight end, then it is paused. From the moment the
    plan is carried out it is LEAVING and the one that comes is COMING, also while the victim still drains.
    """

    name: WorkloadName
    victims: tuple[WorkloadName, ...]
    why: str
    preempt: bool = False
    """Victims of a class that may be preempted are cut off from requests in flight instead. Others among them are drained still."""


@dataclass(frozen=True, slots=True)
class Leave:
    """Pause it: nobody needs it, or its schedule says so."""

    name: WorkloadName
    why: str


@dataclass(frozen=True, slots=True)
class Prefetch:
    """Read its content from the store into RAM ahead."""

    name: WorkloadName
    why: str


@dataclass(frozen=True, slots=True)
class DropPrefetched:
    """Something else is more likely: stop prefetching it, or give its room up."""

    name: WorkloadName
    why: str


Action = Bring | Leave | Prefetch | DropPrefetched


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now. Actions on different workloads may run at the same time."""

    actions: tuple[Action, ...] = ()
    next_poll: float | None = None
    """When time alone could change the answer; None: only something that happens can."""
    reasons: Mapping[WorkloadName, str] = field(default_factory=dict)
    """Of those who want to come and may not yet: why, in words for `explain` and the dry run."""
