"""What is asked for next, from the requests that came last.

Each workload's requests are taken as a renewal process: how long it has been silent, and how often, after a silence as long, a
request came within the horizon. So a pause of two seconds in a session means something else than one of two minutes, and both
are learned, not set. Few observations are mixed with a steady stream of as many requests as came after silences like that.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

from kybernate.model.types import WorkloadName
from kybernate.policy.node_state import NodeState

MEMORY_S = 20.0
"""Time constant of rates: as long as a burst, short against the changes of a day."""
PRIOR_COUNT = 2.0
"""How many observations the steady stream counts as."""


@dataclass(frozen=True, slots=True)
class Stream:
    """The requests of one workload."""

    silence: float
    gaps: tuple[float, ...]
    span: float
    """Seconds that are remembered, of all workloads."""
    rate: float
    """Requests a second just now: weighted by age."""

    def chance(self, horizon: float) -> float:
        """Probability of a request within `horizon` seconds."""
        longer = [gap for gap in self.gaps if gap > self.silence]
        steady = 1 - math.exp(-(len(longer) + 1) * horizon / self.span)
        within = sum(gap <= self.silence + horizon for gap in longer)
        return (within + PRIOR_COUNT * steady) / (len(longer) + PRIOR_COUNT)


SILENT = Stream(silence=math.inf, gaps=(), span=math.inf, rate=0.0)


def streams(node: NodeState) -> Mapping[WorkloadName, Stream]:
    """Of those that were asked for lately."""
    times: dict[WorkloadName, list[float]] = {}
    for when, name in node.arrivals:
        if name in node.members and when <= node.now:
            times.setdefault(name, []).append(when)
    if not times:
        return {}
    now = node.now
    span = max(MEMORY_S, now - min(when[0] for when in times.values()))
    return {
        name: Stream(
            silence=node.now - seen[-1],
            gaps=tuple(after - before for before, after in itertools.pairwise(seen)),
            span=span,
            rate=sum(math.exp((when - now) / MEMORY_S) for when in seen if now - when < 10 * MEMORY_S) / MEMORY_S,
        )
        for name, seen in times.items()
    }
