"""From what the agent knows to what a policy sees. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kybernate.agent.records.ledger import ARBITER, RECOVERY, USER, Entry
from kybernate.agent.serving.controller_state import Acting
from kybernate.agent.serving.worker_load import Demand
from kybernate.agent.serving.workload_stats import Stats
from kybernate.model.quantities import together
from kybernate.model.types import GpuUuid, TierName, WorkloadName, WorkloadState
from kybernate.policy.costs import Costs, Source
from kybernate.policy.node_state import PHASES, Class, Member, Phase
from kybernate.policy.schedule import in_window, next_change
from kybernate.settings.specs import Kind, Served


@dataclass(frozen=True, slots=True)
class Seen:
    """All that is known of one workload at one moment."""

    name: WorkloadName
    entry: Entry | None
    served: Served | None
    stats: Stats = field(default_factory=Stats)
    demand: Demand = field(default_factory=Demand)
    hinted: Mapping[GpuUuid, int] = field(default_factory=dict)
    """What the configuration says that it needs."""
    resident: Mapping[GpuUuid, int] = field(default_factory=dict)
    """What it holds now."""
    ready: bool = True
    """Of a model that runs: it may be asked."""
    worked_on: bool = False
    """Somebody does something to it just now."""
    prefetched: bool = False
    acting: Acting | None = None
    requested: bool = False
    """A person ordered its resume."""
    stopped: bool = False
    """A person stopped it, and nobody has asked for it since."""
    back_off_until: float = 0.0
    """It failed to come, or to leave, lately."""
    refused_until: float = 0.0
    """It could not be paused lately; infinite where it can't be at all."""
    shortage: Mapping[GpuUuid, int] = field(default_factory=dict)
    """So much free VRAM was not enough for it lately: what the driver keeps for it stands in none of our books."""
    reserved: Mapping[GpuUuid, int] = field(default_factory=dict)
    """It has so much for itself while it runs, and comes only where that is free."""
    wanted: Mapping[GpuUuid, int] = field(default_factory=dict)
    """What it asked for in vain when it was paused: with less it would come only to wait."""
    never_ready: bool = False
    """An eager model that has not been up since the agent knows it."""


def member_of(seen: Seen, *, costs: Costs, gpus: Iterable[GpuUuid], auto_resume: bool, now: float) -> Member:
    entry, served = seen.entry, seen.served
    phase = phase_of(seen)
    size = bytes_of(seen, phase, list(gpus))
    tier = entry.tier if entry is not None and phase is Phase.AWAY else None
    klass = Class.BATCH if served is None else served.klass
    failing = seen.back_off_until > now
    refused = seen.refused_until > now
    external = entry is not None and entry.external
    return Member(
        name=seen.name,
        klass=klass,
        priority=0 if served is None else served.priority,
        phase=phase,
        bytes=size,
        cost=costs.cost(seen.name, size=sum(size.values()), source=source_of(seen, phase)),
        tier=tier,
        prefetched=seen.prefetched,
        waiting=seen.demand.waiting,
        oldest_wait=seen.demand.oldest_wait,
        in_flight=seen.demand.in_flight,
        service_s=seen.demand.service_s,
        last_use=_last_use(seen),
        since=seen.acting.since if seen.acting is not None else 0.0 if entry is None else entry.since,
        wanted=wanted(seen, auto_resume=auto_resume, now=now),
        wanted_at=_wanted_at(seen, now),
        pausable=not refused and not failing and not seen.worked_on and not external,
        settling=(refused and seen.refused_until != float("inf")) or failing or seen.worked_on,
        pinned=_pinned(seen, phase, now),
        idle_s=None if served is None else served.idle_s,
    )


def source_of(seen: Seen, phase: Phase) -> Source:
    """Where it comes from, or will once it is paused."""
    if phase in (Phase.RESIDENT, Phase.LEAVING):
        return TierName.RAM
    entry = seen.entry
    paused = entry is not None and entry.state in (WorkloadState.PAUSED, WorkloadState.RESUMING)
    return entry.tier if entry is not None and paused else None


def phase_of(seen: Seen) -> Phase:
    entry = seen.entry
    phase = Phase.ABSENT if entry is None else PHASES[entry.state]
    if phase is Phase.ABSENT and seen.acting is not None and seen.acting.phase is Phase.LEAVING:
        return phase  # a victim that has ended has no VRAM to give back, and needs none
    if seen.acting is not None:
        # Begun and not yet to be seen in the ledger: a victim that drains, one whose victims leave.
        there = Phase.RESIDENT if seen.acting.phase is Phase.COMING else Phase.AWAY
        return phase if phase is there and seen.ready else seen.acting.phase
    if phase is Phase.RESIDENT and not seen.ready:
        return Phase.COMING
    return phase


def bytes_of(seen: Seen, phase: Phase, gpus: list[GpuUuid]) -> Mapping[GpuUuid, int]:
    """What it holds, needs back, or will need as far as anybody knows."""
    sizes = _bytes_of(seen, phase, gpus)
    if phase is Phase.LEAVING or not seen.reserved:
        return sizes
    return {uuid: max(sizes.get(uuid, 0), seen.reserved.get(uuid, 0)) for uuid in {*sizes, *seen.reserved}}


def _bytes_of(seen: Seen, phase: Phase, gpus: list[GpuUuid]) -> Mapping[GpuUuid, int]:
    entry = seen.entry
    if entry is not None and entry.evicted and entry.state in (WorkloadState.PAUSED, WorkloadState.RESUMING):
        needed = together(entry.evicted, seen.wanted)
        return {uuid: max(size, seen.shortage.get(uuid, 0)) for uuid, size in needed.items()}
    if phase in (Phase.RESIDENT, Phase.LEAVING):
        return seen.resident
    expected: Mapping[GpuUuid, int] = {uuid: size for uuid, size in seen.stats.needs.items() if uuid in gpus}
    if not expected:
        expected = seen.hinted
    known = (expected, seen.resident, seen.shortage)
    return {uuid: max(each.get(uuid, 0) for each in known) for uuid in {*expected, *seen.resident}}


def wanted(seen: Seen, *, auto_resume: bool, now: float) -> bool:
    """Shall it run without a request?"""
    entry, served = seen.entry, seen.served
    if seen.requested:
        return True
    if seen.stopped:
        return False
    if served is None:
        if entry is None or entry.ended:
            return False
        return entry.state is not WorkloadState.PAUSED or (auto_resume and entry.paused_by == ARBITER)
    if served.kind is Kind.JOB:
        return work_left(seen) and in_window(served.schedule, now)
    return served.eager and seen.never_ready


def _wanted_at(seen: Seen, now: float) -> float | None:
    served = seen.served
    if served is None or served.kind is not Kind.JOB or not work_left(seen) or in_window(served.schedule, now):
        return None
    return next_change(served.schedule, now)


def work_left(seen: Seen) -> bool:
    """Of a job: it runs, or is to be started again."""
    entry, served = seen.entry, seen.served
    assert served is not None
    if entry is not None and not entry.ended:
        return True
    return not seen.stats.done or seen.stats.fingerprint != served.fingerprint


def _pinned(seen: Seen, phase: Phase, now: float) -> bool:
    """It stays as it is: a person said so, or it has just failed."""
    entry = seen.entry
    if phase in (Phase.AWAY, Phase.ABSENT) and seen.back_off_until > now:
        return True
    if phase in (Phase.AWAY, Phase.ABSENT) and seen.stopped:
        return True
    if entry is None:
        return False
    if entry.external:
        return True
    if entry.state is WorkloadState.LOST and seen.served is not None and not seen.served.cold_start:
        return True
    return entry.state is WorkloadState.PAUSED and entry.paused_by in (USER, RECOVERY) and not seen.requested


def _last_use(seen: Seen) -> float:
    entry = seen.entry
    if seen.served is not None and seen.served.kind is Kind.MODEL:
        return max(seen.demand.last_use, 0.0 if entry is None else entry.running_since)
    return 0.0 if entry is None else entry.running_since
