"""The targets: what is measured against a number, at most or at least, and how a missed one is told. Pure; called by report.py."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import report_serving
from report_text import digits, size

MIB = 1 << 20

BARS: dict[str, float] = {
    "pause.zero.dirty.40GiB": 1.6,
    "pause.zero.clean.40GiB": 0.75,
    "pause.warm.clean.40GiB": 0.06,
    "pause.warm.dirty.40GiB": 0.85,
    "resume.zero.40GiB": 1.1,
    "resume.warm.40GiB": 0.85,
    "swap.zero.40GiB": 1.7,
    "vram_after_zero_bytes": 0.0,
    "torch_small_ops_ratio": 1.01,
    "training_step_ratio": 1.01,
    "clone.first_answer.10GiB": 2.0,
    "second_snapshot.bytes_ratio": 0.02,
    "agent.memory_added.100GiB": 200.0 * MIB,
    "added.p50_ms": 0.5,
    "added.p99_ms": 2.0,
    "held_lost": 0.0,
    "restores.1000.lost": 0.0,
    "restores.1000.bytes_wrong": 0.0,
    "host_memory.written_ratio": 1.05,
    "host_memory.scratch_bytes": 64.0 * MIB,
    "host_memory.agent_bytes": 256.0 * MIB,
    "host_memory.2000_threads.pause.of_criu": 1.2,
    "host_memory.2000_threads.resume.of_criu": 1.2,
    "host_memory.65000_mappings.pause.of_criu": 1.2,
    "host_memory.65000_mappings.resume.of_criu": 1.2,
    "host_memory.19900_descriptors.pause.of_criu": 1.2,
    "host_memory.19900_descriptors.resume.of_criu": 1.2,
}
"""Targets, at most."""
FLOORS: dict[str, float] = {
    "nvme.write.of_fio": 0.85,
    "nvme.read.of_fio": 0.85,
    "host_memory.pause.of_dd": 0.85,
    "host_memory.resume.of_dd": 0.85,
    "object.put.of_best_client": 0.80,
    "object.get.of_best_client": 0.80,
    "rps.vs_llama_swap": 1.0,
    **report_serving.FLOORS,
}
"""Targets, at least."""

WORDS: dict[str, str] = {
    "pause.zero.dirty.40GiB": "pause of 40 GiB, everything changed",
    "pause.zero.clean.40GiB": "pause of 40 GiB, nothing changed",
    "pause.warm.clean.40GiB": "warm pause of 40 GiB, nothing changed",
    "pause.warm.dirty.40GiB": "warm pause of 40 GiB, everything changed",
    "resume.zero.40GiB": "resume of 40 GiB",
    "resume.warm.40GiB": "warm resume of 40 GiB",
    "swap.zero.40GiB": "swap of two workloads of 40 GiB",
    "vram_after_zero_bytes": "VRAM left after a pause",
    "torch_small_ops_ratio": "run time of small PyTorch kernels",
    "training_step_ratio": "run time of a PyTorch training step",
    "clone.first_answer.10GiB": "first answer of a clone of 10 GiB",
    "second_snapshot.bytes_ratio": "bytes written by a second snapshot",
    "agent.memory_added.100GiB": "memory the agent needs for 100 GiB of snapshots",
    "added.p50_ms": "median latency added per request",
    "added.p99_ms": "p99 latency added per request",
    "held_lost": "held requests lost",
    "restores.1000.lost": "restores that failed",
    "restores.1000.bytes_wrong": "wrong bytes after a restore",
    "host_memory.pause.of_dd": "speed of host memory to the disk",
    "host_memory.resume.of_dd": "speed of host memory from the disk",
    "host_memory.written_ratio": "bytes written for host memory",
    "host_memory.scratch_bytes": "scratch room for host memory",
    "host_memory.agent_bytes": "memory the agent needs for host memory on its way",
    "host_memory.2000_threads.pause.of_criu": "dump of 2,000 threads",
    "host_memory.2000_threads.resume.of_criu": "restore of 2,000 threads",
    "host_memory.65000_mappings.pause.of_criu": "dump of 65,000 mappings",
    "host_memory.65000_mappings.resume.of_criu": "restore of 65,000 mappings",
    "host_memory.19900_descriptors.pause.of_criu": "dump of 19,900 descriptors",
    "host_memory.19900_descriptors.resume.of_criu": "restore of 19,900 descriptors",
    "nvme.write.of_fio": "disk write speed",
    "nvme.read.of_fio": "disk read speed",
    "object.put.of_best_client": "S3 write speed",
    "object.get.of_best_client": "S3 read speed",
    "rps.vs_llama_swap": "requests per second",
    "answers_equal_ratio": "answers equal to those of the server alone",
    "training_exact": "exact result of the training job",
}
"""Each target as a person would call it."""
_COMPARED = {
    "of_fio": "{value} of fio, target {target}",
    "of_dd": "{value} of dd, target {target}",
    "of_criu": "{value} of CRIU's time with files, target {target}",
    "of_best_client": "{value} of the best client, target {target}",
    "vs_llama_swap": "{value} of llama-swap, target {target}",
}
"""How a ratio is read, by the end of its name."""


def targets(contents: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The measured cases that have a target."""
    return [case for content in contents for case in content["cases"] if case["case"] in BARS | FLOORS]


def missed(case: dict[str, Any]) -> bool:
    """Whether a target was not met."""
    name, value = case["case"], case["value"]
    return bool(value > BARS.get(name, value) or value < FLOORS.get(name, value))


def bar(case: dict[str, Any]) -> str:
    """The target as a cell of a table; the empty string where there is none."""
    name = case["case"]
    if name not in BARS and name not in FLOORS:
        return ""
    return f"{BARS.get(name, FLOORS.get(name, 0.0)):g}" + (" **missed**" if missed(case) else "")


def sentence(contents: Iterable[dict[str, Any]]) -> str:
    """How many targets were met, and in words which were missed; the empty string when none was measured."""
    cases = targets(contents)
    names = [_told(case) for case in cases if missed(case)]
    if not cases:
        return ""
    if not names:
        return f"All {len(cases)} targets are met."
    return f"{len(names)} of {len(cases)} targets {'is' if len(names) == 1 else 'are'} missed: {_listed(names)}."


def _told(case: dict[str, Any]) -> str:
    name, unit, value = case["case"], case["unit"], case["value"]
    target = BARS.get(name, FLOORS.get(name, 0.0))
    end = name.rpartition(".")[2]
    if end in _COMPARED:
        return f"{WORDS[name]} ({_COMPARED[end].format(value=_percent(value), target=_percent(target))})"
    if unit == "ratio":
        return f"{WORDS[name]} ({_percent(value)}, target {_percent(target)})"
    if unit == "B":
        return f"{WORDS[name]} ({size(int(value))}, target {size(int(target))})"
    return f"{WORDS[name]} ({digits(value)} {unit}".rstrip() + f", target {target:g} {unit}".rstrip() + ")"


def _percent(value: float) -> str:
    """Two digits more where a rounded one would hide the miss."""
    return f"{value:.0%}" if abs(value - round(value, 2)) < 1e-9 or value < 0.95 else f"{value:.2%}"


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
