"""What an agent says of a workload, in few words."""

from __future__ import annotations

import time
from typing import Any

from kybernate.model.api import WorkloadView
from kybernate.model.types import GIB, Backend, WorkloadState


def workload(name: str = "a", **given: Any) -> WorkloadView:
    defaults: dict[str, Any] = {
        "state": WorkloadState.RUNNING,
        "reason": "",
        "since": time.time() - 65,
        "backend": Backend.BROKER,
        "last_use": 0.0,
        "argv": ["python", "serve.py"],
        "resident_bytes": 3 * GIB,
        "tier": "vram",
    }
    return WorkloadView(name=name, **(defaults | given))
