"""What the controller has noted of each workload. It is lost with the agent; workload_stats.py has what outlives that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kybernate.agent.serving.build_state import Acting
from kybernate.model.types import GpuUuid, WorkloadName
from kybernate.settings import ServingSettings
from kybernate.settings.specs import Served


@dataclass(slots=True, kw_only=True)
class Notes:
    served: Mapping[WorkloadName, Served] = field(default_factory=dict)
    """As the file has them now; likewise `settings`."""
    settings: ServingSettings = field(default_factory=ServingSettings)
    acting: dict[WorkloadName, Acting] = field(default_factory=dict)
    """On whom an effect is under way."""
    asked_for: set[WorkloadName] = field(default_factory=set)
    """A person ordered their resume, or their start."""
    stopped: dict[WorkloadName, int] = field(default_factory=dict)
    """Models that a person stopped, and how many requests had come by then: one that comes later starts it again."""
    been_up: set[WorkloadName] = field(default_factory=set)
    starting: set[WorkloadName] = field(default_factory=set)
    """Begun from nothing: `Coming.start` itself says when they may be asked."""
    replacing: set[WorkloadName] = field(default_factory=set)
    """Being ended, since their program was changed in the file."""
    refused: set[WorkloadName] = field(default_factory=set)
    """Those of whom the workers were told that they can't be had, because of a failure."""
    short: dict[WorkloadName, dict[GpuUuid, int]] = field(default_factory=dict)
    """How much room was too little for a resume, and a little more."""
