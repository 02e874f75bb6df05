"""What outlives an agent of each workload: needs, costs, usage, how a job ended. Read as the next agent reads it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.agent.records.database import Database
from kybernate.agent.serving.workload_stats import Stats, Usage, WorkloadStats
from kybernate.model.types import GIB, GpuUuid, TierName, WorkloadName
from kybernate.policy.costs import Costs, Direction

pytestmark = pytest.mark.unit

A, B = WorkloadName("a"), WorkloadName("b")
GPU = GpuUuid("GPU-0")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(tmp_path / "agent.db")
    made.open()
    yield made
    made.close()


@pytest.fixture
def again(database: Database) -> Callable[[], WorkloadStats]:
    """As the next agent has it."""

    def load() -> WorkloadStats:
        stats = WorkloadStats(database)
        stats.load()
        return stats

    return load


def test_of_a_workload_that_nobody_knows_everything_is_nothing(again: Callable[[], WorkloadStats]) -> None:
    stats = again()
    assert stats.of(A) == Stats()
    assert stats.all() == {}
    assert stats.costs == Costs(seconds={}, bandwidth={})


def test_every_field_comes_back(again: Callable[[], WorkloadStats]) -> None:
    given_ = {
        "fingerprint": "f",
        "needs": {GPU: 5 * GIB},
        "klass": "batch",
        "usage": Usage(1.5, 0.5, 1e12),
        "counted_until": 1000.25,
        "done": True,
        "imaged": "g",
        "was_ready": True,
    }
    fields = {field.name for field in dataclasses.fields(Stats)} - {"took"}
    assert set(given_) == fields, "a new field belongs here"
    again().update(A, **given_)
    assert again().all() == {A: Stats(**given_)}  # type: ignore[arg-type]


def test_what_changes_later_leaves_the_rest_as_it_was(again: Callable[[], WorkloadStats]) -> None:
    stats = again()
    stats.update(A, fingerprint="f")
    stats.update(B, done=True)
    stats.update(A, done=True)
    assert again().all() == {A: Stats(fingerprint="f", done=True), B: Stats(done=True)}


def test_costs_come_back_by_workload_direction_and_tier_and_bandwidths_of_everybody(
    again: Callable[[], WorkloadStats],
) -> None:
    out, back = Direction
    seconds = {(A, out, TierName.RAM): 0.5, (A, back, TierName.NVME): 4.0, (A, back, None): 60.0}
    costs = Costs(
        seconds=seconds | {(B, out, TierName.RAM): 9.0}, bandwidth={(out, TierName.RAM): 5e10, (back, None): 1e9}
    )
    again().record_costs(A, costs)
    found = again().costs
    assert found.seconds == seconds, "of b nothing was measured just now"
    assert found.bandwidth == costs.bandwidth


def test_a_record_that_can_not_be_read_is_left_out_and_the_others_are_not(
    database: Database, again: Callable[[], WorkloadStats]
) -> None:
    again().update(A, done=True)
    for name, record in (("b", "no json"), ("c", '{"usage": 5}'), ("*", '{"bandwidth": "x"}')):
        database.write("INSERT INTO serving (name, record) VALUES (?, ?)", (name, record))
    assert again().all() == {A: Stats(done=True)}


def test_a_record_of_a_former_version_has_defaults_for_what_it_lacks(
    database: Database, again: Callable[[], WorkloadStats]
) -> None:
    database.write("INSERT INTO serving (name, record) VALUES (?, ?)", ("a", '{"fingerprint": "f"}'))
    assert again().of(A) == Stats(fingerprint="f")


def test_nothing_new_is_not_written_again(database: Database, again: Callable[[], WorkloadStats]) -> None:
    stats = again()
    stats.update(A, done=False)
    assert database.read_now("SELECT name FROM serving") == [("a",)], "known from now on, though nothing is special"
    database.write("DELETE FROM serving")
    stats.update(A, done=False)
    assert database.read_now("SELECT name FROM serving") == []


@given(usages=st.lists(st.tuples(*[st.integers(0, 1000)] * 3), max_size=5))
def test_usages_add_up_field_by_field_in_any_order(usages: list[tuple[int, int, int]]) -> None:
    made = [Usage(*each) for each in usages]
    forwards, backwards = Usage(), Usage()
    for each in made:
        forwards = forwards + each
    for each in reversed(made):
        backwards = backwards + each
    assert forwards == backwards == Usage(*(sum(column) for column in zip(*usages, strict=True))) if usages else Usage()
