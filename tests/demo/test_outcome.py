"""What became of the demo, in numbers and on the terminal."""

from __future__ import annotations

from typing import Any

import pytest

from kybernate.demo.load import Ask, Told
from kybernate.demo.outcome import Outcome, outcome_of, show
from kybernate.model.api_history import HistoryView, IntervalView, SwitchedView
from kybernate.model.types import GIB

pytestmark = pytest.mark.unit

EXPECTED = {"p": "a b c", "q": "d"}


def told(prompt: str = "p", text: str = "a b c", **given: Any) -> Told:
    defaults: dict[str, Any] = {"sent_at": 0.0, "status": 200, "first_s": 0.1, "total_s": 1.0, "complete": True}
    return Told(ask=Ask(0.0, "m", prompt, 3), text=text, **(defaults | given))


def interval(workload: str, place: str, began: float, ended: float | None) -> IntervalView:
    return IntervalView(id=1, workload=workload, place=place, began=began, ended=ended)


def switch(workload: str, operation: str) -> SwitchedView:
    return SwitchedView(
        time=1.0,
        workload=workload,
        operation=operation,
        depth="zero",
        seconds=0.5,
        bytes_total=GIB,
        bytes_copied=GIB,
        bytes_clean=0,
        bytes_zero=0,
    )


HISTORY = HistoryView(
    now=110.0,
    since=0.0,
    intervals=[
        interval("m", "vram", 90.0, 104.0),
        interval("m", "ram", 104.0, 106.0),
        interval("m", "vram", 106.0, None),
        interval("training", "vram", 20.0, 99.0),
    ],
    switches=[switch("m", "pause"), switch("training", "pause"), switch("training", "resume")],
    links=[],
)


def outcome(*answers: Told, trained: str = "sum 1", began: float = 100.0) -> Outcome:
    return outcome_of(answers, HISTORY, expected=EXPECTED, trained=trained, result="sum 1", seconds=2.0, began=began)


def test_only_what_was_answered_in_whole_counts_and_exact_is_what_the_server_alone_said() -> None:
    found = outcome(told(), told(text="a b"), told("q", "d"), told(complete=False))
    assert (found.requests, found.answered, found.exact, found.tokens) == (4, 3, 2, 3 + 2 + 1)


def test_whoever_was_held_is_told_apart_from_whoever_found_its_model() -> None:
    held = {"wait-ms": "900"}
    found = outcome(
        told(first_s=0.1), told(first_s=0.3), told(first_s=1.0, headers=held), told(first_s=2.0, headers=held)
    )
    assert (found.first_warm_p50, found.first_held_p50, found.first_p99) == (0.3, 2.0, 2.0)


def test_without_any_there_is_nothing_to_say() -> None:
    found = outcome()
    assert (found.first_warm_p50, found.first_held_p50, found.first_p99) == (None, None, None)


def test_time_in_vram_is_counted_from_the_beginning_on_and_to_now() -> None:
    found = outcome()
    assert found.vram_s == {"m": 4.0 + 4.0, "training": 0.0}
    assert found.whole_s == 10.0


def test_switches_and_the_trainings_pauses() -> None:
    found = outcome()
    assert (found.switches, found.switched_bytes, found.training_pauses) == (3, 3 * GIB, 1)
    assert found.training_exact
    assert not outcome(trained="sum 2").training_exact


def test_it_is_shown_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    show(HISTORY, outcome(told(), told("q", "wrong")), ["m", "training"], began=100.0)
    shown = capsys.readouterr().out
    assert "requests: 2, 2 answered, 1 exactly as the server alone did" in shown
    assert "tokens:   4, 2 a second" in shown
    assert "first token, median: 0.100 s where the model was there, - where it had to come; p99 0.100 s" in shown
    assert "switches: 3 pauses and resumes, 3.0 GiB moved" in shown
    assert "in VRAM:  m 80%, training 0% of 10.0 s" in shown
    assert "training: paused 1 times; its result is exactly that without interruption" in shown
