"""When who is asked for: shapes of traffic for any models, drawn from a seed. Rates are requests a second, all models together."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

from kybernate.model.types import WorkloadName
from kybernate.policy.simulation import Request

DAY_S = 1800.0
"""A day of `day-night`: half an hour, so that a thousand requests see some."""

Service = Callable[[random.Random, WorkloadName], float]
"""What a model works on one request, in seconds."""
Traffic = Callable[[random.Random, float, int, Sequence[WorkloadName], Service], list[Request]]
"""Random numbers, rate, how many requests, the models (the first ones are the popular ones), what answers take."""


def answer_s(rng: random.Random, _: WorkloadName) -> float:
    """Half a second to ten, half of them below two: lengths of answers are spread like that."""
    return min(10.0, max(0.5, rng.lognormvariate(math.log(2.0), 0.8)))


def around(seconds: Mapping[WorkloadName, float]) -> Service:
    """Spread alike around what was measured of each model; of others nothing was."""

    def service(rng: random.Random, name: WorkloadName) -> float:
        mean = seconds.get(name)
        return answer_s(rng, name) if mean is None else mean * rng.lognormvariate(-0.32, 0.8)  # its mean is 1

    return service


def zipf(
    rng: random.Random, rate: float, count: int, models: Sequence[WorkloadName], service: Service
) -> list[Request]:
    """Independent requests, models by Zipf's law with exponent 1."""
    return list(poisson(rng, rate, count, models, [1 / (k + 1) for k in range(len(models))], service))


def bursts(
    rng: random.Random, rate: float, count: int, models: Sequence[WorkloadName], service: Service
) -> list[Request]:
    """Sessions of one model each: 3 to 20 requests, one every second or so, as agents and pages with many calls do."""
    weights = [1 / math.sqrt(k + 1) for k in range(len(models))]
    found: list[Request] = []
    now, mean_length = 0.0, 11.5
    while len(found) < count:
        now += rng.expovariate(rate / mean_length)
        model = rng.choices(models, weights)[0]
        when = now
        for _ in range(rng.randint(3, 20)):
            found.append(Request(when, model, service(rng, model)))
            when += rng.expovariate(1.0)
    return sorted(found, key=lambda r: r.at)[:count]


def day_night(
    rng: random.Random, rate: float, count: int, models: Sequence[WorkloadName], service: Service
) -> list[Request]:
    """The load swings between 5 % and 195 %; by day some models are asked for most, by night the others."""
    by_day = max(1, 2 * len(models) // 5)
    day = [max(3, 4 - k) if k < by_day else 1 for k in range(len(models))]
    night = [1 if k < by_day else max(2, 4 - (k - by_day)) for k in range(len(models))]
    found: list[Request] = []
    now = 0.0
    while len(found) < count:
        now += rng.expovariate(2 * rate)
        light = math.sin(2 * math.pi * now / DAY_S)
        if rng.random() < (1 + 0.95 * light) / 2:
            model = rng.choices(models, day if light > 0 else night)[0]
            found.append(Request(now, model, service(rng, model)))
    return found


def two_hot(
    rng: random.Random, rate: float, count: int, models: Sequence[WorkloadName], service: Service
) -> list[Request]:
    """Two models get 45 % each, the others the rest."""
    others = len(models) - 2
    weights = [45.0, 45.0, *([10 / others] * others if others > 0 else [])][: len(models)]
    return list(poisson(rng, rate, count, models, weights, service))


def poisson(
    rng: random.Random,
    rate: float,
    count: int,
    models: Sequence[WorkloadName],
    weights: Sequence[float],
    service: Service,
) -> Iterator[Request]:
    """Requests that know nothing of each other."""
    now = 0.0
    for _ in range(count):
        now += rng.expovariate(rate)
        model = rng.choices(models, weights)[0]
        yield Request(now, model, service(rng, model))


TRAFFIC: Mapping[str, Traffic] = MappingProxyType(
    {"zipf": zipf, "bursts": bursts, "day-night": day_night, "two-hot": two_hot}
)
