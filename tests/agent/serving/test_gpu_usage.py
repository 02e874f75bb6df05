"""Who had the GPU for how long, over the lives of agents."""

from __future__ import annotations

from pathlib import Path

import pytest

from kybernate.agent.records.database import Database
from kybernate.agent.serving.gpu_usage import GpuUsage, Resident
from kybernate.agent.serving.workload_stats import WorkloadStats
from kybernate.model.types import WorkloadName

pytestmark = pytest.mark.unit

A = WorkloadName("a")


def test_time_with_vram_is_counted_and_carried_on(tmp_path: Path) -> None:
    database = Database(tmp_path / "db")
    database.open()
    try:
        stats = WorkloadStats(database)
        usage = GpuUsage(stats)
        running = [Resident(name=A, klass="batch", bytes=10, busy=True)]
        usage.tick(running, 100.0)
        usage.tick([Resident(name=A, klass="batch", bytes=20, busy=False)], 103.0)
        usage.tick([], 105.0)
        usage.tick([], 500.0)
        counted = usage.usage(A)
        assert (counted.resident_s, counted.busy_s, counted.byte_s) == (5.0, 3.0, 30.0 + 40.0)
        usage.tick(running, 600.0)
        usage.write(601.0)
        again = WorkloadStats(database)
        again.load()
        later = GpuUsage(again)
        later.tick(running, 611.0)
        assert later.usage(A).resident_s == 5.0 + 10.0, "no agent counted for ten seconds, and it held its VRAM"
        assert later.by_class()["batch"].resident_s == 15.0
    finally:
        database.close()
