"""What an agent wrote of its workloads is read by the one that comes after it, field by field."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.agent.building import GPU, NOW, entry, paused, report

from kybernate.agent.records.database import Database
from kybernate.agent.records.ledger import ARBITER, Entry
from kybernate.agent.records.ledger_rows import LedgerRows
from kybernate.model.api import RunRequest
from kybernate.model.types import Depth, EndedBy, TierName, WorkloadState

pytestmark = pytest.mark.unit

FULL = paused(
    "full",
    10,
    reason="for b",
    running_since=NOW - 900,
    paused_by=ARBITER,
    unmanaged={GPU: 5},
    held={GPU: 6},
    pids=(11, 12),
    exit_status=0,
    ended_by=EndedBy.ORDER,
    tier=TierName.NVME,
    snapshot="full-3",
    stale=("full-1",),
    also=(TierName.OBJECT,),
    kept=("full-0", "full-2"),
    image="gold",
    cold_start=RunRequest(name="full", argv=["x"], directory="/", environment={"A": "b"}),
    last_pause=report("pause"),
    last_resume=report("resume"),
    depth=Depth.WARM,
)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(tmp_path / "agent.db")
    made.open()
    yield made
    made.close()


@pytest.mark.parametrize("one", [FULL, entry("bare"), entry("old", WorkloadState.LOST)], ids=lambda one: str(one.name))
def test_every_field_comes_back(database: Database, one: Entry) -> None:
    records = LedgerRows(database)
    records.write(None, one)
    assert records.load() == [one]


def test_the_newest_word_counts_and_what_was_removed_is_gone(database: Database) -> None:
    records = LedgerRows(database)
    for each in (entry("a"), entry("b"), entry("a", WorkloadState.EXITED)):
        records.write(None, each)
    records.write(entry("b"), None)
    records.write(None, None)
    assert [(one.name, one.state) for one in records.load()] == [("a", WorkloadState.EXITED)]


def test_they_come_by_name_whatever_their_order(database: Database) -> None:
    records = LedgerRows(database)
    for name in ("c", "a", "b"):
        records.write(None, entry(name))
    assert [one.name for one in records.load()] == ["a", "b", "c"]


@pytest.mark.parametrize("record", ["{}", "not JSON", '{"name": "x", "state": "dreaming"}', "[]"])
def test_what_another_version_wrote_and_this_one_can_not_read_costs_nobody_else(
    database: Database, record: str, caplog: pytest.LogCaptureFixture
) -> None:
    records = LedgerRows(database)
    records.write(None, entry("good"))
    database.write("INSERT INTO workloads (name, record) VALUES (?, ?)", ("bad", record))
    assert [one.name for one in records.load()] == ["good"]
    assert "can't read the record of workload bad" in caplog.text


async def test_a_flush_returns_when_all_of_it_is_written(database: Database) -> None:
    records = LedgerRows(database)
    for number in range(200):
        records.write(None, entry(f"a{number}"))
    await records.flush(refuse=True)
    assert len(records.load()) == 200
