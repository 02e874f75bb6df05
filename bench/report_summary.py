"""The short versions: README's one table, and the summary on top of docs/benchmarks.md. Pure; called by report.py.

Each line is there only as far as it was measured on a real GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import report_serving
import report_targets
from report_text import markdown, quantity, where

Results = Mapping[str, dict[str, Any]]
"""The results of real GPUs, by the name of the benchmark."""

_README_CASES = (
    ("pause", "pause.zero.dirty.40GiB", "pause 40 GiB of GPU memory, all of it changed"),
    ("pause", "resume.zero.40GiB", "resume it"),
    ("pause", "swap.zero.40GiB", "swap: one workload of 40 GiB leaves, another comes"),
    ("multiplex", "ttft.parked_ram.alone_s", "first token of a 24 GiB model server parked in RAM"),
)
_RIVALS = {"pause": "the CUDA driver's own checkpoint", "multiplex": "llama-swap, which starts the server again"}
_SIZES = ("10GiB", "40GiB")
_CASES = {
    "pause.zero.dirty": "pause, everything changed",
    "pause.zero.clean": "pause, nothing changed",
    "resume.zero": "resume",
    "swap.zero": "swap: one leaves, another comes",
}
_OVERHEAD = {
    "torch_small_ops_ratio": "small PyTorch kernels",
    "training_step_ratio": "a PyTorch training step",
    "alloc_free_pair_ratio": "cuMemAlloc and cuMemFree of 4 MiB (served from our cache)",
    "alloc_free_pair_ratio.64MiB": "cuMemAlloc and cuMemFree of 64 MiB",
}
_ORDER = ("pause", "overhead", "tiers", "snapshots", "multiplex", "activator")
"""Of the benchmarks whose targets are counted."""


def readme(results: Results) -> list[str]:
    """The table between README's marks; no lines when nothing was measured."""
    rows, hosts = [], []
    for name, case_name, words in _README_CASES:
        case = _cases(results, name).get(case_name)
        if case is None:
            continue
        other = case["baseline"]
        rows.append([words, f"{case['value']:.2f} s", f"{other['value']:.1f} s ({_RIVALS[name]})" if other else ""])
        if (gpu := f"{results[name]['host']['gpu']}") not in hosts:
            hosts.append(gpu)
    lines = []
    if rows:
        lines += [*markdown(["", "Kybernate", "compared with"], rows, right=(1,)), ""]
        lines += [f"Medians on {' and '.join(hosts)}.", ""]
    if told := report_targets.sentence(_counted(results)):
        lines += [told, ""]
    if lines:
        lines += ["All numbers with their spread: [docs/benchmarks.md](docs/benchmarks.md)."]
    return lines


def page(results: Results) -> list[str]:
    """The summary of docs/benchmarks.md."""
    lines = [
        *_speed(results),
        *_overhead(results),
        *_below_ram(results),
        *_serving(results),
        *_compatibility(results),
    ]
    if told := report_targets.sentence(_counted(results)):
        lines = [told, "", *lines]
    return ["## Summary", "", *lines] if lines else []


def _counted(results: Results) -> list[dict[str, Any]]:
    return [results[name] for name in _ORDER if name in results]


def _cases(results: Results, name: str) -> dict[str, dict[str, Any]]:
    return {case["case"]: case for case in results[name]["cases"]} if name in results else {}


def _speed(results: Results) -> list[str]:
    """A row for each thing a person does, a column for each size."""
    cases = _cases(results, "pause")
    sizes = [size for size in _SIZES if any(name.endswith(f".{size}") for name in cases)]
    rows = []
    for name, words in _CASES.items():
        found = [cases.get(f"{name}.{size}") for size in sizes]
        if any(found):
            rows.append([words, *(_cell(case) for case in found)])
    if not rows:
        return []
    return [*markdown(["", *sizes], rows, right=range(1, len(sizes) + 1)), "", f"{where(results['pause'])}.", ""]


def _cell(case: dict[str, Any] | None) -> str:
    if case is None:
        return ""
    baseline = case["baseline"]
    return f"{case['value']:.2f} s" + (f" (driver alone {baseline['value']:.1f} s)" if baseline else "")


def _overhead(results: Results) -> list[str]:
    rows = [
        [_OVERHEAD[name], f"{case['value']:.2f}", f"{case['min']:.2f} to {case['max']:.2f}"]
        for name, case in _cases(results, "overhead").items()
        if name in _OVERHEAD
    ]
    if not rows:
        return []
    heading = "time while running, with the library / without it (1.00: no overhead)"
    return [*markdown([heading, "median", "range"], rows, right=(1, 2)), "", f"{where(results['overhead'])}.", ""]


def _below_ram(results: Results) -> list[str]:
    cases = _cases(results, "tiers")
    rows = [*_journeys(cases), *_shares(cases)]
    for name, case in cases.items():
        what, _, much = name.rpartition(".")
        if what == "clone.first_answer" and case["baseline"]:
            took, cold = quantity(case["value"], "s"), case["baseline"]["value"]
            rows.append([f"first answer of a clone of a {much} model server", f"{took} (cold start {cold:.1f} s)"])
    if second := cases.get("second_snapshot.bytes_ratio"):
        rows.append(["second snapshot of that server, unchanged", f"{second['value']:.1%} of its bytes are written"])
    if not rows:
        return []
    return [*markdown(["disk, bucket and images", ""], rows), "", f"{where(results['tiers'])}.", ""]


def _journeys(cases: dict[str, dict[str, Any]]) -> list[list[str]]:
    """How long a process takes to a tier and back."""
    found = []
    for tier, words in (("nvme", "local disk"), ("object", "S3 server on the same host")):
        for name, out in cases.items():
            back = cases.get(name.replace(".pause.", ".resume."))
            if name.startswith(f"process.{tier}.pause.") and back is not None:
                much = name.rpartition(".")[2]
                found.append([f"process of {much}, {words}", f"{out['value']:.1f} s out, {back['value']:.1f} s back"])
    return found


def _shares(cases: dict[str, dict[str, Any]]) -> list[list[str]]:
    """The store beside programs that only move bytes."""
    found = []
    for write, read, words, other in (
        ("nvme.write.of_fio", "nvme.read.of_fio", "speed of the store on the disk", "fio"),
        ("object.put.of_best_client", "object.get.of_best_client", "speed of the store in S3", "the best client"),
    ):
        if write in cases and read in cases:
            numbers = f"{cases[write]['value']:.0%} writing, {cases[read]['value']:.0%} reading"
            found.append([words, f"{numbers} ({other}: 100%)"])
    return found


def _serving(results: Results) -> list[str]:
    lines: list[str] = []
    if (multiplex := results.get("multiplex")) and (words := report_serving.multiplexing(multiplex)):
        lines += [
            "Five model servers of 24 GiB on 60 GiB of VRAM, 1,000 requests from a trace, one training job beside them:",
            "",
        ]
        if table := report_serving.first_tokens(multiplex):
            lines += [*table, ""]
        lines += [*(f"- {each}" for each in words), "", f"{where(multiplex)}.", ""]
    if (activator := results.get("activator")) and (added := report_serving.activating(activator)):
        lines += ["The address in front of them:", "", *(f"- {each}" for each in added), "", f"{where(activator)}.", ""]
    return lines


def _compatibility(results: Results) -> list[str]:
    if (compatibility := results.get("compatibility")) is None:
        return []
    verdicts = [row["verdict"] for row in compatibility["programs"]]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts))
    return [f"Programs paused and resumed under load: {counts}. See [compatibility](compatibility.md).", ""]
