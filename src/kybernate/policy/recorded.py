"""Recorded traces: JSON lines, one request a line.

    {"at_s": 1764067200.25, "model": "llama", "tokens": 120}

`at_s` counts seconds from any moment on; what the model worked on it is said as `seconds`, or guessed from `tokens`. Whose requests
they are, and on which node, is then said by the configuration. A trace that stands for itself has its node in the first line:

    {"trace": "monday", "capacity": {"GPU-0": "60 GiB"}, "workloads": [
        {"name": "llama", "bytes": {"GPU-0": "24 GiB"}, "leave": 0.6, "come": 0.7, "class": "interactive", "concurrency": 8}]}
    {"at_s": 0.0, "model": "llama", "seconds": 2.5}

(The first line must be one line.) `leave` and `come` may be left out: then they are what a PCIe 5 link takes. Requests may stand in
any order: what is written when an answer ends isn't in the order of arrival.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kybernate.model.errors import BadInput
from kybernate.model.quantities import parse_size
from kybernate.model.types import GpuUuid, TierName, workload_name
from kybernate.policy.costs import PRIORS, Direction
from kybernate.policy.node_state import Class
from kybernate.policy.simulation import Request, Trace, Workload

TOKENS_PER_S = 50.0
"""What a model of some ten billion parameters gives one client on a large GPU, about."""


def read_trace(path: Path, *, node: Trace | None = None, tokens_per_s: float = TOKENS_PER_S) -> Trace:
    """
    Args:
        node: whose capacity and workloads are meant where the file doesn't say.
        tokens_per_s: of one answer.

    Raises:
        BadInput: unreadable or senseless; one line with file and line number.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise BadInput(f"can't read the trace {path}: {e}") from e
    if not lines:
        raise BadInput(f"{path}:1: the trace is empty", hint='a line is {"at_s": 0.5, "model": "NAME", "tokens": 100}')
    number = 0
    try:
        head = json.loads(lines[0])
        whole = node is None or "workloads" in head
        base = _node(head, path.stem) if node is None or whole else replace(node, name=path.stem)
        requests = []
        for number in range(int(whole), len(lines)):
            if lines[number].strip():
                requests.append(_request(json.loads(lines[number]), tokens_per_s))
    except (ValueError, KeyError, TypeError, AttributeError, BadInput) as e:
        what = f"{e} is missing" if isinstance(e, KeyError) else str(e)
        raise BadInput(f"{path}:{number + 1}: no line of a trace: {what}") from e
    if not whole and requests:  # a recorder's clock
        first = min(request.at for request in requests)
        requests = [replace(request, at=request.at - first) for request in requests]
    trace = replace(base, requests=tuple(sorted(requests, key=lambda request: request.at)))
    trace.check()
    return trace


def written(trace: Trace) -> Iterator[str]:
    """The lines of its file."""
    workloads = [
        {
            "name": w.name,
            "bytes": w.bytes,
            "leave": w.leave,
            "come": w.come,
            "class": w.klass.value,
            "priority": w.priority,
            "concurrency": w.concurrency,
            "wanted": w.wanted,
            "idle": w.idle,
        }
        for w in trace.workloads
    ]
    yield json.dumps({"trace": trace.name, "capacity": trace.capacity, "workloads": workloads})
    for request in trace.requests:
        yield json.dumps({"at_s": request.at, "model": request.model, "seconds": request.seconds})


def _node(head: Mapping[str, Any], name: str) -> Trace:
    workloads = tuple(_workload(given) for given in head["workloads"])
    return Trace(str(head.get("trace", name)), _sizes(head["capacity"]), workloads, ())


def _request(given: Mapping[str, Any], tokens_per_s: float) -> Request:
    seconds = float(given["seconds"]) if "seconds" in given else float(given["tokens"]) / tokens_per_s
    at = float(given["at_s"])
    if not (math.isfinite(at) and math.isfinite(seconds) and seconds >= 0):
        raise ValueError("times are finite, and durations not negative")
    return Request(at, workload_name(given["model"]), seconds)


def _workload(given: Mapping[str, Any]) -> Workload:
    sizes = _sizes(given["bytes"])
    whole = sum(sizes.values())
    return Workload(
        name=workload_name(given["name"]),
        bytes=sizes,
        leave=float(given.get("leave", PRIORS[Direction.LEAVE, TierName.RAM].seconds(whole))),
        come=float(given.get("come", PRIORS[Direction.COME, TierName.RAM].seconds(whole))),
        klass=Class(given.get("class", Class.INTERACTIVE)),
        priority=int(given.get("priority", 0)),
        concurrency=max(1, int(given.get("concurrency", 8))),
        wanted=bool(given.get("wanted", False)),
        idle=None if given.get("idle") is None else float(given["idle"]),
    )


def _sizes(given: Mapping[str, Any]) -> dict[GpuUuid, int]:
    return {GpuUuid(str(gpu)): parse_size(size) for gpu, size in given.items()}
