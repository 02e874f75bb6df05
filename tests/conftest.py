"""What all tests share: markers that leave out what a machine can't do, and waiting with a deadline.

Tests use real processes, sockets, cgroups and namespaces; only the GPU is simulated. They run side by side
(`pytest -n 2`), so each makes its own directories and names.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

import pytest

T = TypeVar("T")

SLOWER = 4 if os.environ.get("KYBERNATE_SANITIZER") else 1
"""Deadlines are so many times as long under a sanitizer."""

LEFT_OUT = {
    "root": (lambda: os.geteuid() == 0, "left out: needs root"),
    "gpu": (lambda: Path("/dev/nvidiactl").exists(), "left out: needs a real GPU"),
}
"""Marker, whether this machine can, and the one line said otherwise."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for marker, (possible, reason) in LEFT_OUT.items():
        if not possible():
            for item in items:
                if item.get_closest_marker(marker):
                    item.add_marker(pytest.mark.skip(reason=reason))


class Eventually(Protocol):
    """`eventually(lambda: ..., timeout_s=5, what="...")` returns the first true value the condition gives."""

    def __call__(self, condition: Callable[[], T], *, timeout_s: float = 10.0, what: str = "") -> T: ...


@pytest.fixture(scope="session")
def eventually() -> Eventually:
    """Wait for a condition by polling it every 5 ms; fail with `what` at the deadline."""

    def wait(condition: Callable[[], T], *, timeout_s: float = 10.0, what: str = "") -> T:
        deadline = time.monotonic() + timeout_s * SLOWER
        while True:
            if value := condition():
                return value
            if time.monotonic() > deadline:
                pytest.fail(f"not within {timeout_s} s: {what or condition}")
            time.sleep(0.005)

    return wait
