"""What docs/benchmarks.md says of multiplex.json and activator.json. Pure; called by report.py and report_summary.py."""

from __future__ import annotations

from typing import Any

FLOORS: dict[str, float] = {"answers_equal_ratio": 1.0, "training_exact": 1.0}
"""Targets, at least."""

_FIRST = (("warm", "in VRAM"), ("parked_ram", "in RAM"), ("parked_nvme", "on the disk"))


def rows(content: dict[str, Any]) -> list[list[str]]:
    """A row a case of multiplex.json: name, value, from to, of how many, what it is compared with, its target."""
    return [
        [
            f"`{case['case']}`",
            _quantity(case["value"], case["unit"]),
            f"{_quantity(case['min'], case['unit'])} to {_quantity(case['max'], case['unit'])}"
            if case["n"] > 1
            else "",
            str(case.get("of", case["n"])),
            f"{case['baseline']['name']} {_quantity(case['baseline']['value'], _unit_of_baseline(case))}"
            if case["baseline"]
            else "",
            _target(case),
        ]
        for case in content["cases"]
    ]


def _unit_of_baseline(case: dict[str, Any]) -> str:
    """A ratio's baseline is what it was divided by."""
    return "s" if case["unit"] == "ratio" else str(case["unit"])


def _quantity(value: float, unit: str) -> str:
    return f"{value:.3g} {unit}".strip() if unit != "ratio" else f"{value:.3f}"


def _target(case: dict[str, Any]) -> str:
    name, value = case["case"], case["value"]
    if name in FLOORS:
        return f"at least {FLOORS[name]:g}" + (" **missed**" if value < FLOORS[name] else "")
    return ""


def multiplexing(content: dict[str, Any]) -> list[str]:
    """In sentences, as far as it was measured."""
    cases = {case["case"]: case for case in content["cases"]}
    parts = []
    if equal := cases.get("answers_equal_ratio"):
        exact = "All" if equal["value"] == 1 else f"{equal['value']:.2%}"
        parts.append(f"{exact} of {equal['of']} answers equal those of the same server running alone.")
    if training := cases.get("training_exact"):
        result = "exact" if training["value"] == 1 else "**not** exact"
        parts.append(f"The result of the training job in the gaps is {result}.")
    if wait := cases.get("wait.mean.vs_fifo"):
        unlike = f" {wait['unlike']}" if "unlike" in wait else ""
        parts.append(f"Requests waited {wait['value']:.2f}x as long as under FIFO.{unlike}")
    if busy := cases.get("gpu_busy_share"):
        parts.append(f"The GPU was busy {busy['value']:.0%} of the time.")
    return parts


def first_tokens(content: dict[str, Any]) -> list[str]:
    """A table of how long the first token takes by where the model is; no lines for nothing."""
    cases = {case["case"]: case for case in content["cases"]}
    lines = [
        f"| {words} | {cases[f'ttft.{kind}.p50_s']['value']:.2g} s | {cases[f'ttft.{kind}.p99_s']['value']:.2g} s |"
        for kind, words in _FIRST
        if f"ttft.{kind}.p50_s" in cases and f"ttft.{kind}.p99_s" in cases
    ]
    if ratio := cases.get("ttft.parked_ram.p50.vs_start_stop"):
        other, mine = ratio["baseline"], ratio["value"] * ratio["baseline"]["value"]
        against = f"{other['name']} {other['value']:.2g} s"
        lines.append(f"| in RAM, on an idle node | {mine:.2g} s ({against}) | |")
    head = ["| first token of a model that lies | median | 99th percentile |", "| --- | ---: | ---: |"]
    return [*head, *lines] if lines else []


def activating(content: dict[str, Any]) -> list[str]:
    """The same of the address in front of the models."""
    cases = {case["case"]: case for case in content["cases"]}
    parts = []
    if (p50 := cases.get("added.p50_ms")) and (p99 := cases.get("added.p99_ms")):
        parts.append(f"It adds {p50['value']:.2g} ms to a request ({p99['value']:.2g} ms at the 99th percentile).")
    if swap := cases.get("rps.vs_llama_swap"):
        parts.append(f"It passes {swap['value']:.2f}x the requests per second of llama-swap.")
    if token := cases.get("added_per_token_us"):
        parts.append(f"It adds {token['value']:.2g} µs to a streamed token.")
    return parts
