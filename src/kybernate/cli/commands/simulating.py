"""simulate: what requests would wait under each policy, by the simulator; nothing is started and nobody is asked but for sizes."""

from __future__ import annotations

import random
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from kybernate.cli.common import Common, print_json, table
from kybernate.cli.fitting import whole_columns
from kybernate.model.errors import BadInput
from kybernate.model.quantities import format_seconds, format_size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kybernate.cli.known import Known
    from kybernate.model.types import WorkloadName
    from kybernate.policy.comparison import Summary
    from kybernate.policy.simulation import Trace
    from kybernate.settings.specs import Served

_COMMON = Common()
_TRAFFIC = "zipf"
COLUMNS = ("POLICY", "MEAN", "P50", "P99", "WORST", "SWAPS", "INTERACTIVE", "BATCH", "SWITCHING", "UNANSWERED")
_DISPENSABLE = ("P50", "SWITCHING", "WORST", "UNANSWERED")


def simulate(
    *,
    file: Annotated[Path | None, Parameter(name=("--file", "-f"))] = None,
    trace: Path | None = None,
    traffic: str | None = None,
    policy: str | None = None,
    rate: float = 0.3,
    requests: int = 1000,
    tokens_per_s: float = 50.0,
    vram: str | None = None,
    seed: int = 0,
    common: Common = _COMMON,
) -> None:
    """Predict request waiting times for each scheduling policy. This is a simulation, not a measurement.

    Args:
        file: kybernate.yaml with the models and jobs. Sizes and costs are those the agent here has measured.
        trace: Recorded requests: JSON lines such as {"at_s": 12.5, "model": "chat", "tokens": 120}, or with `seconds`.
        traffic: Random requests instead: zipf, bursts, day-night or two-hot. The first models of the file are popular.
        policy: Policies, separated by commas. Default: all.
        rate: Random requests per second, all models together.
        requests: Number of random requests.
        tokens_per_s: Tokens per second of one answer, for traces with `tokens`.
        vram: VRAM of each GPU. Default: agent.vram.limit, or that of the running agent.
        seed: Seed of the random requests.
    """
    from kybernate.policy.comparison import compare, summary
    from kybernate.policy.registry import POLICIES, policy_named
    from kybernate.policy.settings import PolicySettings

    if trace is not None and traffic is not None:
        raise BadInput("give --trace or --traffic, not both")
    if file is None and trace is None:
        raise BadInput("simulate what?", hint="kybernate simulate -f kybernate.yaml --traffic bursts")
    if rate <= 0 or tokens_per_s <= 0 or not 0 < requests <= 1_000_000:
        raise BadInput("--rate, --requests and --tokens-per-s are more than 0, --requests at most 1000000")
    names = list(POLICIES) if policy is None else [name.strip() for name in policy.split(",")]
    policies = {name: policy_named(name) for name in names}
    numbers, unknown = PolicySettings(), []
    node: Trace | None = None
    if file is not None:
        from kybernate.agent.serving.simulating import node_of
        from kybernate.cli.known import known
        from kybernate.settings import load
        from kybernate.settings.specs import served_of

        settings = load(file)
        served = served_of(settings)
        found = known(settings, served, vram=vram, common=common)
        numbers = settings.serving.numbers()
        node = node_of(served, capacity=found.capacity, needs=found.needs, costs=found.costs)
        unknown = [name for name in served if name not in found.needs]
        if trace is None:
            node = _drawn(node, served, found, traffic or _TRAFFIC, rate=rate, requests=requests, seed=seed)
    if trace is not None:
        from kybernate.policy.recorded import read_trace

        node = read_trace(trace, node=node, tokens_per_s=tokens_per_s)
    assert node is not None
    results = {name: summary(some) for name, some in compare([node], policies, numbers).items()}
    if common.json:
        print_json(_document(node, results, unknown))
        return
    _tell(node, results)
    for name in unknown:
        print(f"{name}: nobody knows what it needs, so it was left out; set its `vram`")


def _drawn(
    node: Trace,
    served: Mapping[WorkloadName, Served],
    found: Known,
    traffic: str,
    *,
    rate: float,
    requests: int,
    seed: int,
) -> Trace:
    from kybernate.policy.traffic import TRAFFIC, around
    from kybernate.settings.specs import Kind

    if traffic not in TRAFFIC:
        raise BadInput(f"no traffic is called {traffic!r}", hint=f"choose one of: {', '.join(TRAFFIC)}")
    models = [w.name for w in node.workloads if served[w.name].kind is Kind.MODEL]
    if not models:
        raise BadInput("there is no model with a known size", hint="set `vram` of the models, or start an agent here")
    drawn = TRAFFIC[traffic](random.Random(f"{traffic} {seed}"), rate, requests, models, around(found.service))
    return replace(node, name=traffic, requests=tuple(drawn))


def _document(node: Trace, results: Mapping[str, Summary], unknown: Sequence[str]) -> dict[str, object]:
    return {
        "simulated": True,
        "trace": node.name,
        "requests": len(node.requests),
        "span_s": _span(node),
        "vram_bytes": list(node.capacity.values()),
        "workloads": [
            {
                "name": w.name,
                "bytes": sum(w.bytes.values()),
                "leave_s": w.leave,
                "come_s": w.come,
                "class": w.klass.value,
            }
            for w in node.workloads
        ],
        "unknown": list(unknown),
        "policies": {name: asdict(one) for name, one in results.items()},
    }


def _tell(node: Trace, results: Mapping[str, Summary]) -> None:
    batch = sum(w.wanted for w in node.workloads)
    models = len(node.workloads) - batch
    jobs = f" and {batch} job{'' if batch == 1 else 's'}" if batch else ""
    print(
        f"SIMULATED: {node.name}, {len(node.requests)} requests in {format_seconds(_span(node))} to "
        f"{models} model{'' if models == 1 else 's'}{jobs} on {' + '.join(map(format_size, node.capacity.values()))} of VRAM"
    )
    rows = [_row(name, one) for name, one in results.items()]
    shown = list(range(len(COLUMNS)))
    width = None
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        shown = whole_columns(rows, width=width, columns=COLUMNS, dispensable=_DISPENSABLE, gap=2)
    table([COLUMNS[i] for i in shown], [[cells[i] for i in shown] for cells in rows], width=width)
    print("waits until a model begins with a request; then shares of the time in which the GPU had such work")


def _row(name: str, one: Summary) -> tuple[str, ...]:
    return (
        name,
        *(format_seconds(wait) for wait in (one.mean, one.p50, one.p99, one.worst)),
        str(one.switches),
        f"{one.interactive_share:.0%}",
        f"{one.batch_share:.0%}",
        f"{one.switching:.0%}",
        str(one.unanswered),
    )


def _span(node: Trace) -> float:
    return node.requests[-1].at - node.requests[0].at if node.requests else 0.0
