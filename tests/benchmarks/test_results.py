"""Results of benchmarks: medians with what they are worth, written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kybernate.benchmarks.results import Baseline, Case, commit, document, host, write

pytestmark = pytest.mark.unit


def test_a_number_is_the_median_with_its_spread_and_what_it_is_compared_with() -> None:
    case = Case(
        "pause", "s", (0.3, 0.1, 0.2), baseline=Baseline("driver", 1.23456789, 3), floor=0.0999999999, notes={"gib": 40}
    )
    assert case.as_json() == {
        "case": "pause",
        "unit": "s",
        "value": 0.2,
        "n": 3,
        "min": 0.1,
        "max": 0.3,
        "baseline": {"name": "driver", "value": 1.23457, "n": 3},
        "floor": 0.1,
        "gib": 40,
    }


def test_of_an_even_number_it_is_the_middle_of_two_and_whole_numbers_stay_whole() -> None:
    assert Case("x", "s", (1.0, 2.0)).as_json()["value"] == 1.5
    assert Case("x", "bytes", (7,)).as_json()["value"] == 7
    assert Case("x", "bytes", (123456789,)).as_json()["max"] == 123456789, "no digit of a count is dropped"
    assert Case("x", "s", (1.0,)).as_json()["baseline"] is None


def test_a_floor_of_nought_is_a_floor() -> None:
    assert Case("x", "s", (1.0,), floor=0.0).as_json()["floor"] == 0.0


def test_the_commit_may_be_named_by_who_copied_the_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KYBERNATE_COMMIT", "abc123")
    assert commit() == "abc123"


def test_a_document_says_where_it_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KYBERNATE_COMMIT", "abc123")
    found = document("pause", [Case("x", "s", (1.0,))], simulated=True, notes=["one"])
    assert (found["bench"], found["commit"], found["simulated"], found["notes"]) == ("pause", "abc123", True, ["one"])
    assert [case["case"] for case in found["cases"]] == ["x"]
    assert found["date"].endswith("+00:00")
    assert host(simulated=True)["gpu"] == "simulated"
    assert json.loads(json.dumps(found)) == found


def test_a_result_takes_the_place_of_the_last_one_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "results" / "pause.json"
    write(path, {"a": 1})
    write(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}
    assert [each.name for each in path.parent.iterdir()] == ["pause.json"]
