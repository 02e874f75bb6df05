"""Whether this process is inside a workload: there the agent's directory is hidden, and no agent answers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

RUN_DIRECTORY_VARIABLE = "KYBERNATE_RUN_DIRECTORY"
"""In the environment of every workload."""
IDENTITY = "identity.env"
"""In there: whose it is. A clone's is its own, where the variable's last part is the name of whoever it is a copy of."""
_NAME = "KYBERNATE_WORKLOAD="
_BYTES_MOST = 4096


def workload_here(environment: Mapping[str, str] = os.environ) -> str | None:
    """The workload's name. None: this is no workload, or nobody knows."""
    directory = environment.get(RUN_DIRECTORY_VARIABLE)
    if not directory:
        return None
    try:
        with (Path(directory) / IDENTITY).open(encoding="utf-8", errors="replace") as file:
            lines = file.read(_BYTES_MOST).splitlines()
    except (OSError, ValueError):
        return None
    name = next((line.removeprefix(_NAME) for line in lines if line.startswith(_NAME)), "")
    return name if name.isprintable() and name else None
