"""Simulated nodes (KWOK) on a real control plane. The large run is `make cluster-scale`."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cluster.harness import Shape, start
from tests.cluster.scale import fill

pytestmark = pytest.mark.timeout(180)


async def test_simulated_nodes_run_pods(programs: None, directory: Path) -> None:
    cluster = start(directory, Shape(kwok=True), leash=True)
    try:
        measured = await fill(cluster, nodes=20, pods=100)
    finally:
        cluster.leave()
    assert measured.memory["kwok"] > 0
