"""What bench/multiplex.py found, as the cases of multiplex.json. Pure: of what a stage left out there is no case."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from kybernate.benchmarks.results import Baseline, Case
from kybernate.demo.load import quantile
from kybernate.policy.registry import DEFAULT

HELD_S = 0.01
"""A request that was held for less found its model there."""


def cases(found: dict[str, Any]) -> list[Case]:
    made: list[Case] = []
    made += _alone(found.get("alone"))
    made += _equal(found)
    if trace := found.get("trace"):
        made += _trace(trace)
    if policies := found.get("policies"):
        made += _policies(policies[DEFAULT]["told"], policies["fifo"]["told"])
    made += _switch(found)
    if nvme := found.get("nvme"):
        made += _firsts("ttft.parked_nvme", nvme["told"])
        made.append(Case("nvme.move_s", "s", tuple(nvme["moved_s"])))
    return made


def _alone(alone: dict[str, Any] | None) -> list[Case]:
    if alone is None:
        return []
    models = alone["models"].values()
    return [
        Case("alone.cold_start_s", "s", tuple(model["ready_s"] for model in models)),
        Case("alone.ttft_s", "s", tuple(each for model in models for each in model["warm_s"])),
        Case("alone.answers_unstable", "", (float(sum(model["unstable"] for model in models)),)),
    ]


def _told(found: dict[str, Any], *stages: str) -> list[dict[str, Any]]:
    return [each for stage in stages for each in found.get(stage, {}).get("told", [])]


def _equal(found: dict[str, Any]) -> list[Case]:
    """Over all that was answered, and how much of what was asked was."""
    told = _told({**found, **found.get("policies", {})}, "trace", DEFAULT, "fifo", "switch", "nvme")
    complete = [each for each in told if each["complete"]]
    if not complete:
        return []
    ratio = [float(each["equal"]) for each in complete]
    tokens = [float(each["tokens_equal"]) for each in complete]
    trace = found.get("trace", {}).get("told", [])
    made = [
        _mean("answers_equal_ratio", "ratio", ratio),
        _mean("answers_equal_ratio.tokens_only", "ratio", tokens),
    ]
    if trace:
        made.append(_mean("trace.answered_ratio", "ratio", [float(each["complete"]) for each in trace]))
    return made


def _mean(case: str, unit: str, values: Sequence[float], *, baseline: Baseline | None = None) -> Case:
    """One number; how many it is made of stands beside it."""
    return Case(case, unit, (statistics.fmean(values),), baseline=baseline, notes={"of": len(values)})


def _firsts(name: str, told: Iterable[dict[str, Any]]) -> list[Case]:
    firsts = [each["first_s"] for each in told if each["complete"] and each["first_s"] is not None]
    if not firsts:
        return []
    return [
        Case(f"{name}.{word}_s", "s", (quantile(firsts, share),), notes={"of": len(firsts)})
        for word, share in (("p50", 0.5), ("p99", 0.99))
    ]


def _trace(trace: dict[str, Any]) -> list[Case]:
    told = trace["told"]
    made = [
        *_firsts("ttft.warm", [each for each in told if not _held(each)]),
        *_firsts("ttft.parked_ram", [each for each in told if _held(each) and each["tier"] == "ram"]),
        *_firsts("trace.ttft", told),
        Case("trace.switches", "", (float(len(trace["switches"])),)),
        Case("trace.tokens_per_s", "1/s", (sum(each["tokens"] for each in told) / trace["seconds"],)),
    ]
    if trace["training"]["result"] is not None:  # else it has not ended in time: neither exact nor not
        made.append(Case("training_exact", "", (float(trace["training"]["exact"]),)))
    for operation in ("pause", "resume"):
        seconds = [s["seconds"] for s in trace["switches"] if s["operation"] == operation]
        if seconds:
            made.append(Case(f"trace.{operation}_s", "s", tuple(seconds)))
    if trace["busy"]:
        made.append(_mean("gpu_busy_share", "ratio", trace["busy"]))
    return made


def _held(told: dict[str, Any]) -> bool:
    return bool(told["held_s"] >= HELD_S)


def _wait(told: dict[str, Any]) -> float:
    """Held, or all of it where it never got an answer: then it is at least that."""
    return float(told["held_s"] if told["complete"] else told["total_s"])


def _policies(default: Sequence[dict[str, Any]], fifo: Sequence[dict[str, Any]]) -> list[Case]:
    ours, theirs = ([_wait(each) for each in told] for told in (default, fifo))
    if not ours or not theirs or not statistics.fmean(theirs):
        return []
    baseline = Baseline("fifo", statistics.fmean(theirs), len(theirs))
    ratio = statistics.fmean(ours) / baseline.value
    return [
        _mean("wait.mean", "s", ours, baseline=baseline),
        Case("wait.mean.vs_fifo", "ratio", (ratio,), baseline=baseline, notes={"of": len(ours)}),
        _mean("fifo.answered_ratio", "ratio", [float(each["complete"]) for each in fifo]),
    ]


def _switch(found: dict[str, Any]) -> list[Case]:
    """Against starting and stopping: llama-swap's where it ran, else what a cold start and a first token take together."""
    told = [each for each in _told(found, "switch") if each["complete"]]
    if not told:
        return []
    firsts = [each["first_s"] for each in told]
    if (other := found.get("start-stop")) and (theirs := [e["first_s"] for e in other["told"] if e["complete"]]):
        baseline = Baseline(other["name"], statistics.median(theirs), len(theirs))
    else:
        colds = [model["ready_s"] + model["first_s"] for model in found["alone"]["models"].values()]
        baseline = Baseline("cold start", statistics.median(colds), len(colds))
    ratio = statistics.median(firsts) / baseline.value
    return [
        Case("ttft.parked_ram.alone_s", "s", tuple(firsts), baseline=baseline),
        Case("ttft.parked_ram.p50.vs_start_stop", "ratio", (ratio,), baseline=baseline, notes={"of": len(firsts)}),
    ]
