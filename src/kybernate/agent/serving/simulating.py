"""A configuration as the simulator sees it: its models and jobs, with what is known of them. Pure.

The simulator knows no tier below RAM, no cold start and no hours: everything lies in RAM at first, and jobs have work all the time.
"""

from __future__ import annotations

from collections.abc import Mapping

from kybernate.model.errors import BadInput
from kybernate.model.quantities import format_size
from kybernate.model.types import GpuUuid, TierName, WorkloadName
from kybernate.policy.costs import Costs
from kybernate.policy.node_state import Cost
from kybernate.policy.simulation import Trace, Workload
from kybernate.settings.specs import Kind, Served

_UNLIMITED = 8
"""Requests at once of a model whose configuration sets no limit: servers batch about so many without being much slower."""


def node_of(
    served: Mapping[WorkloadName, Served],
    *,
    capacity: Mapping[GpuUuid, int],
    needs: Mapping[WorkloadName, Mapping[GpuUuid, int]],
    costs: Mapping[WorkloadName, Cost],
) -> Trace:
    """A trace without requests. Who isn't in `needs` is left out; who isn't in `costs` is guessed by its size.

    Raises:
        BadInput: one would never fit.
    """
    found = []
    for name, each in served.items():
        sizes = needs.get(name)
        if sizes is None:
            continue
        for gpu, size in sizes.items():
            if size > capacity.get(gpu, 0):
                largest = format_size(capacity[gpu]) if gpu in capacity else "nothing"
                raise BadInput(f"{name} needs {format_size(size)} on {gpu}, which hands out {largest}")
        found.append(_workload(each, sizes, costs.get(name)))
    return Trace("configuration", capacity, tuple(found), ())


def _workload(served: Served, sizes: Mapping[GpuUuid, int], cost: Cost | None) -> Workload:
    if cost is None:
        cost = Costs().cost(served.name, size=sum(sizes.values()), source=TierName.RAM)
    limit = 0 if served.endpoint is None else served.endpoint.limits.concurrency
    return Workload(
        name=served.name,
        bytes=sizes,
        leave=cost.leave,
        come=cost.come_prefetched,
        klass=served.klass,
        priority=served.priority,
        concurrency=limit or _UNLIMITED,
        wanted=served.kind is Kind.JOB,
        idle=served.idle_s,
    )
