"""What a policy may be told: numbers with their units, and why each default is what it is.

One frozen value, made by whoever reads kybernate.yaml. Times are seconds. Costs of switches are no settings: they are measured
(costs.py) and stand in the state of the node.
"""

from __future__ import annotations

from dataclasses import dataclass

from kybernate.policy.node_state import Class


@dataclass(frozen=True, slots=True)
class PolicySettings:
    min_run: float = 2.0
    """Seconds that whoever came stays at least before an allocation, or work that nobody waits for, may pause it: a swap of 40 GiB
    takes 1.7 s, so two that don't fit together compute at least half of the time."""
    stay: float = 2.0
    """Whoever came for its requests stays open for as many times the duration of one of them, as long as more of them come than
    wait elsewhere: until the first ones end it has to stay anyway, and what comes meanwhile is answered with them."""
    due_after: float = 30.0
    """Bound for every queue: one whose oldest request has waited this long, less what the switch itself takes, goes before
    everything that is only worth more, and whoever is in its way is drained. Half a minute is what people wait for a first token
    before they give up; clients' timeouts begin at 60 s."""
    hysteresis: float = 1.0
    """Whoever has just become idle counts as idle only after so long: a client that answers at once (an agent, a benchmark, the
    next message of a batch) must not find its model gone."""
    batch_idle: float = 5.0
    """Interactive workloads must have been idle for so long before a batch workload may take their place: three swaps of 40 GiB, so
    that training comes into gaps, not into the pauses between two requests."""
    batch_evicts_idle: bool = True
    """Whether batch workloads may pause idle interactive ones at all. False: they take only room that is free, so that
    every request that finds its model resident still does."""
    batch_quantum: float = 300.0
    """Equal batch workloads that don't fit together take turns of at least so long: a swap a turn costs them half a percent."""
    preempt: frozenset[Class] = frozenset({Class.BATCH})
    """Classes that are cut off from requests in flight when an interactive workload of higher rank (class, then priority) needs
    their room. Others are drained: no new requests, and those in flight end first. A training job has none and
    is paused either way."""
    return_home: bool = True
    """Whether an idle interactive workload that is expected sooner may take the place of an idle one that isn't, before
    anybody asks."""
    prefetch_min: float = 0.05
    """Staging ahead needs at least this probability of being the next to come: reading 40 GiB from a disk costs no GPU time, so
    even one hit in twenty pays, but not none."""
    prefetch_horizon: float = 300.0
    """Prefetching looks so far ahead: host memory should not wait longer than that for a guess to come true."""
