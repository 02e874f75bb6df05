"""What became of the demo: numbers made of the answers and the agent's history, and how they are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kybernate.benchmarks.results import wide_console
from kybernate.cli.chart import chart
from kybernate.demo.fleet import TRAINING
from kybernate.demo.load import Told, quantile
from kybernate.model.api_history import HistoryView
from kybernate.model.quantities import format_size

HELD_S = 0.01
"""A request that was held for less found its model there."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Times in seconds."""

    requests: int
    answered: int
    exact: int
    tokens: int
    seconds: float
    """From the first request to the last answer."""
    switches: int
    switched_bytes: int
    first_warm_p50: float | None
    first_held_p50: float | None
    """Of those that had to wait for their model."""
    first_p99: float | None
    training: str
    training_exact: bool
    training_pauses: int
    vram_s: Mapping[str, float]
    """How long each was in VRAM, of `whole_s`."""
    whole_s: float


def outcome_of(
    told: Sequence[Told],
    history: HistoryView,
    *,
    expected: Mapping[str, str],
    trained: str,
    result: str,
    seconds: float,
    began: float,
) -> Outcome:
    """`expected` by prompt; `trained` is the training's last word, `result` what it must be."""
    good = [each for each in told if each.complete]
    warm = [each.first_s for each in good if each.first_s is not None and each.held_s < HELD_S]
    held = [each.first_s for each in good if each.first_s is not None and each.held_s >= HELD_S]
    vram: dict[str, float] = {}
    for interval in history.intervals:
        if interval.place == "vram":
            inside = (interval.ended or history.now) - max(began, interval.began)
            vram[interval.workload] = vram.get(interval.workload, 0.0) + max(0.0, inside)
    return Outcome(
        requests=len(told),
        answered=len(good),
        exact=sum(each.text == expected[each.ask.prompt] for each in good),
        tokens=sum(len(each.text.split()) for each in good),
        seconds=seconds,
        switches=len(history.switches),
        switched_bytes=sum(switch.bytes_total for switch in history.switches),
        first_warm_p50=quantile(warm, 0.5) if warm else None,
        first_held_p50=quantile(held, 0.5) if held else None,
        first_p99=quantile([*warm, *held], 0.99) if good else None,
        training=trained,
        training_exact=trained == result,
        training_pauses=sum(switch.workload == TRAINING and switch.operation == "pause" for switch in history.switches),
        vram_s=vram,
        whole_s=history.now - began,
    )


def show(history: HistoryView, outcome: Outcome, names: Sequence[str], *, began: float) -> None:
    """On the terminal."""
    console = wide_console()
    width = max(40, min(100, console.width - 12))
    for line in chart(history.intervals, names, since=began, until=history.now, width=width):
        print(line)
    shares = ", ".join(f"{name} {outcome.vram_s.get(name, 0.0) / outcome.whole_s:.0%}" for name in names)
    firsts = (outcome.first_warm_p50, outcome.first_held_p50, outcome.first_p99)
    warm, held, slowest = ("-" if value is None else f"{value:.3f} s" for value in firsts)
    print()
    print(f"requests: {outcome.requests}, {outcome.answered} answered, {outcome.exact} exactly as the server alone did")
    print(f"tokens:   {outcome.tokens}, {outcome.tokens / outcome.seconds:.0f} a second")
    print(f"first token, median: {warm} where the model was there, {held} where it had to come; p99 {slowest}")
    print(f"switches: {outcome.switches} pauses and resumes, {format_size(outcome.switched_bytes)} moved")
    print(f"in VRAM:  {shares} of {outcome.whole_s:.1f} s")
    end = "exactly that" if outcome.training_exact else "NOT that"
    print(f"training: paused {outcome.training_pauses} times; its result is {end} without interruption")
