"""Where a workload is, in one word, for whoever draws or counts it. Pure."""

from __future__ import annotations

import enum

from kybernate.agent.records.ledger import Entry
from kybernate.model.types import TierName, WorkloadState


class Place(enum.StrEnum):
    VRAM = "vram"
    RAM = "ram"
    NVME = "nvme"
    OBJECT = "object"
    SWITCHING = "switching"
    """On its way from one to another; starting and stopping, too."""


_OF_TIER = {TierName.RAM: Place.RAM, TierName.NVME: Place.NVME, TierName.OBJECT: Place.OBJECT}


def place_of(entry: Entry | None) -> Place | None:
    """None where it isn't any more."""
    if entry is None or entry.ended:
        return None
    if entry.state is WorkloadState.RUNNING:
        return Place.VRAM
    return _OF_TIER[entry.tier] if entry.state is WorkloadState.PAUSED else Place.SWITCHING
