"""Recorded traces: JSON lines, the node first, then one request a line in order of time.

    {"trace": "monday", "capacity": {"GPU-0": "60 GiB"}, "workloads": [
        {"name": "llama", "bytes": {"GPU-0": "24 GiB"}, "leave": 0.6, "come": 0.7, "class": "interactive", "concurrency": 8}]}
    {"at": 0.0, "model": "llama", "seconds": 2.5}

(The first line must be one line.) `leave` and `come` may be left out: then they are what a PCIe 5 link takes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kybernate.model.errors import BadInput
from kybernate.model.quantities import parse_size
from kybernate.model.types import GpuUuid, TierName, workload_name
from kybernate.node.policy.costs import PRIORS, Direction
from kybernate.node.policy.picture import Class
from kybernate.node.policy.simulation import Request, Trace, Workload


def read_trace(path: Path) -> Trace:
    """
    Raises:
        BadInput: unreadable or senseless; one line with file and line number.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise BadInput(f"can't read the trace {path}: {e}") from e
    if not lines:
        raise BadInput(f"{path}:1: the trace is empty", hint="its first line says capacity and workloads")
    number = 0
    try:
        head = json.loads(lines[0])
        workloads = tuple(_workload(given) for given in head["workloads"])
        capacity = _sizes(head["capacity"])
        requests = []
        for line in lines[1:]:
            number += 1
            given = json.loads(line)
            requests.append(Request(float(given["at"]), workload_name(given["model"]), float(given["seconds"])))
    except (ValueError, KeyError, TypeError, AttributeError, BadInput) as e:
        what = f"{e} is missing" if isinstance(e, KeyError) else str(e)
        raise BadInput(f"{path}:{number + 1}: no line of a trace: {what}") from e
    trace = Trace(str(head.get("trace", path.stem)), capacity, workloads, tuple(requests))
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
        yield json.dumps({"at": request.at, "model": request.model, "seconds": request.seconds})


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
