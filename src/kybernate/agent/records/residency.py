"""Where a workload is, in one word, for whoever draws or counts it. Pure."""

from __future__ import annotations

import enum

from kybernate.agent.records.ledger import Entry
from kybernate.model.types import TierName, WorkloadState


class Residency(enum.StrEnum):
    VRAM = "vram"
    RAM = "ram"
    NVME = "nvme"
    OBJECT = "object"
    SWITCHING = "switching"
    """On its way from one to another; starting and stopping, too."""


_OF_TIER = {TierName.RAM: Residency.RAM, TierName.NVME: Residency.NVME, TierName.OBJECT: Residency.OBJECT}


def residency_of(entry: Entry | None) -> Residency | None:
    """None where it isn't any more."""
    if entry is None or entry.ended:
        return None
    if entry.state is WorkloadState.RUNNING:
        return Residency.VRAM
    return _OF_TIER[entry.tier] if entry.state is WorkloadState.PAUSED else Residency.SWITCHING
