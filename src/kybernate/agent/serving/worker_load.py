"""How many requests wait and fly, over all workers, from what each of them last said. Pure but for the clock passed in."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kybernate.model.messages import Load
from kybernate.model.types import WorkloadName

_ARRIVALS = 300
"""What prefetching predicts from: more would only be older."""


@dataclass(frozen=True, slots=True)
class Demand:
    """Of one model, all workers together. Points in time by the agent's clock."""

    waiting: int = 0
    oldest_wait: float | None = None
    in_flight: int = 0
    """Without streams that are only open."""
    begun: int = 0
    ended: int = 0
    service_s: float | None = None
    last_use: float = 0.0
    """When the last request came or ended, or now, while there is one."""


@dataclass(slots=True)
class _Model:
    last: dict[int, tuple[float, Load]] = field(default_factory=dict)
    """By worker, and when."""
    begun: int = 0
    ended: int = 0
    last_use: float = 0.0


class WorkerLoads:
    """Use it in one thread."""

    def __init__(self) -> None:
        self._models: dict[WorkloadName, _Model] = {}
        self._arrivals: deque[tuple[float, WorkloadName]] = deque(maxlen=_ARRIVALS)

    def update(self, worker: int, load: Load, now: float) -> None:
        """
        Args:
            worker: its process id, since numbers are used again.
        """
        name = WorkloadName(load.model)
        model = self._models.setdefault(name, _Model())
        before = model.last.get(worker)
        begun = load.begun - (0 if before is None else before[1].begun)
        ended = load.ended - (0 if before is None else before[1].ended)
        model.last[worker] = (now, load)
        model.begun += max(0, begun)
        model.ended += max(0, ended)
        if begun > 0 or ended > 0 or load.waiting or load.in_flight > load.still:
            model.last_use = now
        if before is not None:  # what an adopted worker counted before is no arrival of now
            for _ in range(min(max(0, begun), _ARRIVALS)):
                self._arrivals.append((now, name))

    def on_disconnected(self, worker: int) -> None:
        """Its requests are no more; what it counted stays counted."""
        for model in self._models.values():
            model.last.pop(worker, None)

    def demand(self, name: WorkloadName, now: float) -> Demand:
        model = self._models.get(name)
        if model is None:
            return Demand()
        loads = list(model.last.values())
        waits = [at - (load.oldest_s or 0.0) for at, load in loads if load.waiting]
        in_flight = sum(load.in_flight - load.still for _, load in loads)
        waiting = sum(load.waiting for _, load in loads)
        return Demand(
            waiting=waiting,
            oldest_wait=min(waits, default=None),
            in_flight=in_flight,
            begun=model.begun,
            ended=model.ended,
            service_s=_average(load for _, load in loads),
            last_use=now if in_flight or waiting else model.last_use,
        )

    def by_worker(self, name: WorkloadName) -> dict[int, Load]:
        model = self._models.get(name)
        return {} if model is None else {worker: load for worker, (_, load) in model.last.items()}

    def arrivals(self) -> tuple[tuple[float, WorkloadName], ...]:
        return tuple(self._arrivals)


def _average(loads: Iterable[Load]) -> float | None:
    known = [(load.service_s, max(1, load.ended)) for load in loads if load.service_s is not None]
    weight = sum(each for _, each in known)
    return sum(seconds * each for seconds, each in known) / weight if known else None


def shares(limit: int, demands: Mapping[int, Load], granted: Mapping[int, int]) -> dict[int, int]:
    """How many of `limit` requests each worker may send at once, by what it has in flight, then by who waits.

    For the moment that a worker takes to hear of a smaller share, the limit may be exceeded by the difference.

    Args:
        demands: by worker; of a worker that said nothing, nothing is known.
        granted: what each may use now.
    """
    workers = sorted(granted)
    if len(workers) == 1:
        return {workers[0]: limit}
    nothing = Load(model="", epoch=0, waiting=0, oldest_s=None, in_flight=0, begun=0, ended=0)
    flying = {worker: min(limit, demands.get(worker, nothing).in_flight) for worker in workers}
    wish = {worker: demands.get(worker, nothing).waiting for worker in workers}
    new = dict(flying)
    left = max(0, limit - sum(flying.values()))
    while left > 0 and any(wish.values()):
        # One by one to whoever has least: a worker with a long queue must not starve the others.
        worker = min((w for w in workers if wish[w] > 0), key=lambda w: (new[w], w))
        new[worker] += 1
        wish[worker] -= 1
        left -= 1
    for k in range(left):
        new[workers[k % len(workers)]] += 1
    return new
