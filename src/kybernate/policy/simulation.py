"""A node in virtual time, for any policy: what would requests have waited?

A model of the node, not a measurement of one. It keeps: capacity per GPU, what a pause and a resume take, one link that carries one
pause and one resume at a time, requests held, drained and cut off as the activator does it, a limit of requests at once per model,
batch workloads that compute whenever they are resident. It leaves out: that workloads which compute at the same time slow
each other, that a server is slower the more it answers at once, tiers below RAM, and everything that fails.
The policy sees the same NodeState as in the agent and is asked after everything that happens, as there.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kybernate.model.errors import BadInput
from kybernate.model.types import GpuUuid, TierName, WorkloadName
from kybernate.policy.node_state import Bring, Class, Cost, Leave, Member, NodeState, Phase, Plan
from kybernate.policy.registry import Policy
from kybernate.policy.settings import PolicySettings

ARRIVALS_SHOWN = 256
"""As many as the agent shows."""
_SERVICE_WEIGHT = 0.2
_TURNS_MAX = 50
"""Plans in a row at one moment before the policy is taken to be going in circles."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One of the simulated node. Times in seconds, sizes in bytes."""

    name: WorkloadName
    bytes: Mapping[GpuUuid, int]
    leave: float
    come: float
    klass: Class = Class.INTERACTIVE
    priority: int = 0
    concurrency: int = 8
    """Requests it works on at once."""
    wanted: bool = False
    """A batch workload with work for the whole time."""
    idle: float | None = None


@dataclass(frozen=True, slots=True)
class Request:
    at: float
    model: WorkloadName
    seconds: float
    """What the model works on it."""


@dataclass(frozen=True, slots=True)
class Trace:
    name: str
    capacity: Mapping[GpuUuid, int]
    workloads: tuple[Workload, ...]
    requests: tuple[Request, ...]
    """In order of time."""

    def check(self) -> None:
        """
        Raises:
            BadInput: it makes no sense.
        """
        names = [workload.name for workload in self.workloads]
        if len(set(names)) != len(names):
            raise BadInput(f"trace {self.name}: two workloads have one name")
        unknown = next((r for r in self.requests if r.model not in names), None)
        if unknown is not None:
            raise BadInput(
                f"trace {self.name}: a request at {unknown.at:g} s is for {unknown.model}, which isn't there"
            )
        for before, after in itertools.pairwise(self.requests):
            if after.at < before.at:
                raise BadInput(f"trace {self.name}: the request at {after.at:g} s comes after one at {before.at:g} s")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened. Times in seconds."""

    waits: tuple[float, ...]
    """Of each request that was answered, from its arrival until the model began with it; in order of arrival."""
    models: tuple[WorkloadName, ...]
    """Whom each of them was for."""
    cut_off: int
    """Requests ended by preemption."""
    left_waiting: int
    """Requests that nobody ever answered, though the policy had all the time it wanted: must be 0."""
    switches: int
    """Pauses and resumes, together halved: how many swaps."""
    duration: float
    shares: Mapping[Class, float]
    """Interactive: part of the time in which a request was worked on; batch: in which one was resident."""
    switching: float
    """Part of the time in which something came or went."""
    round_trips: int = 0
    """Workloads that the policy let go though nobody needed their room, and then brought back though nobody had asked for them: one
    of the two was wrong."""


@dataclass(slots=True)
class _State:
    spec: Workload
    phase: Phase = Phase.AWAY
    since: float = 0.0
    last_use: float = 0.0
    queue: deque[Request] = field(default_factory=deque)
    flying: int = 0
    life: int = 0
    """Counts preemptions, so that the end of a request that was cut off is known as void."""
    service: float | None = None
    gave_way: bool = False
    """It was sent away for its own sake, and hasn't been asked for since."""

    def member(self) -> Member:
        spec = self.spec
        return Member(
            name=spec.name,
            klass=spec.klass,
            priority=spec.priority,
            phase=self.phase,
            bytes=spec.bytes,
            cost=Cost(leave=spec.leave, come=spec.come, come_prefetched=spec.come),
            tier=TierName.RAM if self.phase is Phase.AWAY else None,
            waiting=len(self.queue),
            oldest_wait=self.queue[0].at if self.queue else None,
            in_flight=self.flying,
            service_s=self.service,
            last_use=self.last_use,
            since=self.since,
            wanted=spec.wanted,
            idle_s=spec.idle,
        )


@dataclass(slots=True)
class _Move:
    """A Bring or a Leave under way."""

    coming: WorkloadName | None
    victims: set[WorkloadName]
    """Still there."""
    holds: dict[GpuUuid, int]
    """VRAM that belongs to it: of the victims until they are gone, then of the one that comes."""


class Simulation:
    """One run. `run` may be called once."""

    def __init__(self, trace: Trace, policy: Policy, settings: PolicySettings) -> None:
        trace.check()
        self._trace = trace
        self._policy = policy
        self._settings = settings
        self._now = 0.0
        self._states = {spec.name: _State(spec) for spec in trace.workloads}
        self._moves: list[_Move] = []
        self._events: list[tuple[float, int, str, WorkloadName | None, tuple[Request, int] | None]] = []
        self._order = itertools.count()
        self._link = {"out": 0.0, "in": 0.0}
        self._arrivals: deque[tuple[float, WorkloadName]] = deque(maxlen=ARRIVALS_SHOWN)
        self._begun: list[tuple[Request, float]] = []
        self._cut_off = 0
        self._half_switches = 0
        self._round_trips = 0
        self._areas = {"interactive": 0.0, "batch": 0.0, "switching": 0.0}
        self._look_at: float | None = None

    def run(self) -> Outcome:
        """
        Raises:
            AssertionError: the policy planned what can't be: more than fits, a victim that isn't there, no end.
        """
        for request in self._trace.requests:
            self._at(request.at, "arrive", request.model, (request, 0))
        last = self._trace.requests[-1].at if self._trace.requests else 0.0
        patience = last + 100 * self._settings.due_after + 3600
        self._think()
        while self._events:
            when = self._events[0][0]
            if when > patience or (when > last and not self._busy()):
                break
            self._pass(when)
            while self._events and self._events[0][0] == when:
                _, _, kind, name, what = heapq.heappop(self._events)
                self._happen(kind, name, what)
            self._think()
        return self._outcome()

    # -- time and events ---------------------------------------------------------------------------------------------

    def _at(self, when: float, kind: str, name: WorkloadName | None, what: tuple[Request, int] | None = None) -> None:
        heapq.heappush(self._events, (when, next(self._order), kind, name, what))

    def _busy(self) -> bool:
        return any(s.queue or s.flying for s in self._states.values())

    def _pass(self, when: float) -> None:
        step = when - self._now
        states = self._states.values()
        self._areas["interactive"] += step * any(s.flying and s.spec.klass is Class.INTERACTIVE for s in states)
        self._areas["batch"] += step * any(
            s.phase is Phase.RESIDENT and s.spec.klass is Class.BATCH and (s.spec.wanted or s.flying) for s in states
        )
        self._areas["switching"] += step * any(s.phase in (Phase.COMING, Phase.LEAVING) for s in states)
        self._now = when

    def _happen(self, kind: str, name: WorkloadName | None, what: tuple[Request, int] | None) -> None:
        if name is None:  # time alone
            self._look_at = None
            return
        state = self._states[name]
        if kind == "arrive":
            assert what is not None
            state.queue.append(what[0])
            state.gave_way = False
            state.last_use = self._now
            self._arrivals.append((self._now, name))
            self._serve(state)
        elif kind == "end":
            assert what is not None
            request, life = what
            if life == state.life:
                state.flying -= 1
                state.last_use = self._now
                old = state.service
                state.service = request.seconds if old is None else old + _SERVICE_WEIGHT * (request.seconds - old)
                self._serve(state)
                self._drained(state)
        elif kind == "gone":
            self._gone(state)
        elif kind == "here":
            self._enter(state, Phase.RESIDENT)
            self._moves = [move for move in self._moves if move.coming != name]
            self._serve(state)

    def _serve(self, state: _State) -> None:
        while state.phase is Phase.RESIDENT and state.queue and state.flying < state.spec.concurrency:
            request = state.queue.popleft()
            self._begun.append((request, self._now))
            state.flying += 1
            self._at(self._now + request.seconds, "end", state.spec.name, (request, state.life))

    # -- switching ---------------------------------------------------------------------------------------------------

    def _enter(self, state: _State, phase: Phase) -> None:
        state.phase, state.since = phase, self._now

    def _drained(self, state: _State) -> None:
        """Its pause begins when nothing of it is in flight any more."""
        if state.phase is Phase.LEAVING and not state.flying:
            self._half_switches += 1
            begin = max(self._now, self._link["out"])
            self._link["out"] = begin + state.spec.leave
            self._at(self._link["out"], "gone", state.spec.name)

    def _gone(self, state: _State) -> None:
        self._enter(state, Phase.AWAY)
        move = next(move for move in self._moves if state.spec.name in move.victims)
        move.victims.discard(state.spec.name)
        if not move.victims:
            if move.coming is None:
                self._moves.remove(move)
            else:
                self._come(move)

    def _come(self, move: _Move) -> None:
        assert move.coming is not None
        spec = self._states[move.coming].spec
        move.holds = dict(spec.bytes)
        self._half_switches += 1
        begin = max(self._now, self._link["in"])
        self._link["in"] = begin + spec.come
        self._at(self._link["in"], "here", spec.name)

    def _free(self) -> dict[GpuUuid, int]:
        free = dict(self._trace.capacity)
        resident = (s.spec.bytes for s in self._states.values() if s.phase is Phase.RESIDENT)
        for held in itertools.chain(resident, (move.holds for move in self._moves)):
            for gpu, size in held.items():
                free[gpu] -= size
        return free

    def node_state(self) -> NodeState:
        return NodeState(
            now=self._now,
            members={name: state.member() for name, state in self._states.items()},
            capacity=self._trace.capacity,
            free=self._free(),
            arrivals=tuple(self._arrivals),
        )

    def _think(self) -> None:
        plan = Plan()
        for _ in range(_TURNS_MAX):
            plan = self._policy(self.node_state(), self._settings)
            moves = [action for action in plan.actions if isinstance(action, Bring | Leave)]
            for action in moves:
                self._begin(action)
            if not moves:
                break
        else:
            raise AssertionError(f"the policy never stops planning at {self._now:g} s")
        look = plan.next_poll
        if look is not None and look > self._now and (self._look_at is None or look < self._look_at):
            self._look_at = look
            self._at(look, "look", None)

    def _begin(self, action: Bring | Leave) -> None:
        coming = action.name if isinstance(action, Bring) else None
        names = action.victims if isinstance(action, Bring) else (action.name,)
        victims = [self._states[name] for name in names]
        assert all(victim.phase is Phase.RESIDENT for victim in victims), f"{action}: a victim isn't there"
        holds: dict[GpuUuid, int] = {}
        for victim in victims:
            for gpu, size in victim.spec.bytes.items():
                holds[gpu] = holds.get(gpu, 0) + size
        if coming is not None:
            newcomer = self._states[coming]
            assert newcomer.phase is Phase.AWAY, f"{action}: it isn't away"
            free = self._free()
            for gpu, size in newcomer.spec.bytes.items():
                assert size <= free[gpu] + holds.get(gpu, 0), f"{action}: it doesn't fit"
                holds[gpu] = max(size, holds.get(gpu, 0))
            self._enter(newcomer, Phase.COMING)
            self._round_trips += newcomer.gave_way
            newcomer.gave_way = False
        move = _Move(coming=coming, victims=set(names), holds=holds)
        self._moves.append(move)
        for victim in victims:
            self._enter(victim, Phase.LEAVING)
            victim.gave_way = coming is None
            if isinstance(action, Bring) and action.preempt and victim.spec.klass in self._settings.preempt:
                self._cut_off += victim.flying
                victim.flying = 0
                victim.life += 1
            self._drained(victim)
        if coming is not None and not victims:
            self._come(move)

    def _outcome(self) -> Outcome:
        begun = sorted(self._begun, key=lambda pair: pair[0].at)
        duration = max(self._now, 1e-9)
        return Outcome(
            waits=tuple(when - request.at for request, when in begun),
            models=tuple(request.model for request, _ in begun),
            cut_off=self._cut_off,
            left_waiting=sum(len(state.queue) for state in self._states.values()),
            switches=self._half_switches // 2,
            duration=duration,
            shares={
                Class.INTERACTIVE: self._areas["interactive"] / duration,
                Class.BATCH: self._areas["batch"] / duration,
            },
            switching=self._areas["switching"] / duration,
            round_trips=self._round_trips,
        )


def simulate(trace: Trace, policy: Policy, settings: PolicySettings) -> Outcome:
    return Simulation(trace, policy, settings).run()


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` (0 to 1) of them don't exceed: one that occurred, the next higher where it falls between two."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))] if ordered else 0.0
