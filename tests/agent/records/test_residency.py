"""Where a workload is, in one word."""

from __future__ import annotations

import pytest
from tests.agent.building import entry, paused

from kybernate.agent.records.ledger import Entry
from kybernate.agent.records.residency import Residency, residency_of
from kybernate.model.types import TierName, WorkloadState

pytestmark = pytest.mark.unit

S = WorkloadState


@pytest.mark.parametrize(
    ("one", "place"),
    [
        pytest.param(None, None, id="nobody"),
        pytest.param(entry(), Residency.VRAM, id="one that runs"),
        pytest.param(entry(tier=TierName.NVME), Residency.VRAM, id="one that runs, wherever a copy of it lies"),
        *(pytest.param(paused(tier=tier), Residency(tier.value), id=f"paused in {tier}") for tier in TierName),
        *(
            pytest.param(entry(state=state), Residency.SWITCHING, id=f"{state}")
            for state in (S.STARTING, S.PAUSING, S.RESUMING, S.STOPPING)
        ),
        *(pytest.param(entry(state=state), None, id=f"{state}: nowhere any more") for state in (S.EXITED, S.LOST)),
    ],
)
def test_a_workload_is_in_one_place(one: Entry | None, place: Residency | None) -> None:
    assert residency_of(one) is place
