"""Where a program is dumped: `dumped()` says that all is set up and returns when the test says go, in another life."""

from __future__ import annotations

import os
import time
from pathlib import Path

CONTROL = Path(os.environ["KYBERNATE_RUN_DIRECTORY"], "control")
PLACE = Path(os.environ.get("PLACE", CONTROL))
"""Where a program makes its files."""


def dumped() -> None:
    """Return in the life after."""
    if user := os.environ.get("BECOME"):  # not earlier: often only root may read the tests' Python
        os.chown(CONTROL, int(user), int(user))
        os.setgroups([100, int(user)])
        os.setresgid(int(user), int(user), int(user))
        os.setresuid(int(user), int(user), int(user))
    print("ready", flush=True)
    wait_for(CONTROL / "go")


def wait_for(path: Path) -> None:
    """Until the file is there."""
    while not path.exists():
        time.sleep(0.01)
