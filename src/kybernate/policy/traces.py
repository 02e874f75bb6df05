"""Generated sets of requests for the simulator.

They were chosen before any policy was written and are not to be changed to suit one. All are of a node with 60 or 80 GiB and up to
five models of 24 to 40 GiB, of which two fit together at best; pauses and resumes take what they take over a PCIe 5 link. Light is
a request in twenty seconds, heavy one a second, which a policy that switches at every request can hardly serve any more. Same name
and seed, same trace.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from kybernate.model.types import GIB, GpuUuid, TierName, WorkloadName
from kybernate.policy import traffic
from kybernate.policy.costs import PRIORS, Direction
from kybernate.policy.node_state import Class
from kybernate.policy.simulation import Request, Trace, Workload
from kybernate.policy.traffic import answer_s

GPU = GpuUuid("GPU-0")
SIZES_GIB = (24, 28, 32, 36, 40)
REQUESTS = 1000
LOADS: Mapping[str, float] = MappingProxyType({"light": 0.05, "medium": 0.3, "heavy": 1.0})
"""Requests a second, all models together."""
SUSTAINED = frozenset({"light", "medium"})
"""Loads that every policy here can keep up with. Under the heavy one `fifo` and `lru` can't always: with two hot models their
queues grow for as long as the trace goes on, by day and night they do at each noon. A margin
there says how long the trace was, too."""


@dataclass(frozen=True, slots=True)
class Load:
    """One load of a set."""

    set: str
    load: str
    make: Callable[[random.Random, int], Trace]
    """Random numbers and the number of requests."""

    @property
    def name(self) -> str:
        return f"{self.set}-{self.load}"

    def trace(self, *, seed: int, requests: int = REQUESTS) -> Trace:
        return self.make(random.Random(f"{self.name} {seed}"), requests)


def shipped() -> tuple[Load, ...]:
    """All sets, each with its three loads, in the order of reports."""
    kinds: dict[str, Callable[[str, float], Callable[[random.Random, int], Trace]]] = {
        "zipf": _zipf,
        "bursts": _bursts,
        "day-night": _day_night,
        "two-hot": _two_hot,
        "slow-fast": _slow_fast,
        "training": _training,
    }
    return tuple(
        Load(kind, load, make(f"{kind}-{load}", rate)) for kind, make in kinds.items() for load, rate in LOADS.items()
    )


def _zipf(name: str, rate: float) -> Callable[[random.Random, int], Trace]:
    """Independent requests, models by Zipf's law with exponent 1; which size is the popular one is drawn."""

    def make(rng: random.Random, count: int) -> Trace:
        models = _models(rng)
        return _trace(name, 60, models, traffic.zipf(rng, rate, count, _names(models), answer_s))

    return make


def _bursts(name: str, rate: float) -> Callable[[random.Random, int], Trace]:
    """Sessions of one model each: 3 to 20 requests, one every second or so, as agents and pages with many calls do."""

    def make(rng: random.Random, count: int) -> Trace:
        models = _models(rng)
        return _trace(name, 60, models, traffic.bursts(rng, rate, count, _names(models), answer_s))

    return make


def _day_night(name: str, rate: float) -> Callable[[random.Random, int], Trace]:
    """The load swings between 5 % and 195 %; by day two models are asked for, by night the three others. A training job."""

    def make(rng: random.Random, count: int) -> Trace:
        models = _models(rng)
        requests = traffic.day_night(rng, rate, count, _names(models), answer_s)
        return _trace(name, 80, [*models, _job(24)], requests)

    return make


def _two_hot(name: str, rate: float) -> Callable[[random.Random, int], Trace]:
    """Two models that don't fit together get 45 % each, the three others the rest."""

    def make(rng: random.Random, count: int) -> Trace:
        models = [_model("hot-a", 36), _model("hot-b", 40), _model("c", 24), _model("d", 28), _model("e", 32)]
        requests = list(traffic.poisson(rng, rate, count, _names(models), [45, 45, 4, 3, 3], answer_s))
        return _trace(name, 60, models, requests)

    return make


def _slow_fast(name: str, rate: float) -> Callable[[random.Random, int], Trace]:
    """One answers in 5 to 10 s and two at once, one in half a second; they don't fit together. Rarely a third."""

    def make(rng: random.Random, count: int) -> Trace:
        slow, fast, other = _model("slow", 40, concurrency=2), _model("fast", 24), _model("other", 28)
        found: list[Request] = []
        now = 0.0
        for _ in range(count):
            now += rng.expovariate(rate)
            model = rng.choices([slow, fast, other], [10, 80, 10])[0]
            seconds = {"slow": rng.uniform(5, 10), "fast": rng.uniform(0.3, 0.7)}.get(model.name)
            seconds = seconds or answer_s(rng, model.name)
            found.append(Request(now, model.name, seconds))
        return _trace(name, 60, [slow, fast, other], found)

    return make


def _training(name: str, rate: float) -> Callable[[random.Random, int], Trace]:
    """Zipf again, with a training job of 40 GiB that always has work."""

    def make(rng: random.Random, count: int) -> Trace:
        models = _models(rng)
        return _trace(name, 80, [*models, _job(40)], traffic.zipf(rng, rate, count, _names(models), answer_s))

    return make


def _models(rng: random.Random) -> list[Workload]:
    sizes = list(SIZES_GIB)
    rng.shuffle(sizes)
    return [_model(f"model-{chr(ord('a') + k)}", size) for k, size in enumerate(sizes)]


def _model(name: str, gib: int, *, concurrency: int = 8) -> Workload:
    leave, come = (PRIORS[direction, TierName.RAM].seconds(gib * GIB) for direction in Direction)
    return Workload(WorkloadName(name), {GPU: gib * GIB}, leave=leave, come=come, concurrency=concurrency)


def _job(gib: int) -> Workload:
    leave, come = (PRIORS[direction, TierName.RAM].seconds(gib * GIB) for direction in Direction)
    return Workload(WorkloadName("training"), {GPU: gib * GIB}, leave=leave, come=come, klass=Class.BATCH, wanted=True)


def _names(models: list[Workload]) -> list[WorkloadName]:
    return [model.name for model in models]


def _trace(name: str, gib: int, workloads: list[Workload], requests: list[Request]) -> Trace:
    return Trace(name, {GPU: gib * GIB}, tuple(workloads), tuple(requests))
