"""Where a program is dumped: `dumped()` says that all is set up and returns when the test says go, in another life."""

from __future__ import annotations

import os
import time
from pathlib import Path

CONTROL = Path(os.environ["KYBERNATE_RUN_DIRECTORY"], "control")


def dumped() -> None:
    """Return in the life after."""
    print("ready", flush=True)
    wait_for(CONTROL / "go")


def wait_for(path: Path) -> None:
    """Until the file is there."""
    while not path.exists():
        time.sleep(0.01)
