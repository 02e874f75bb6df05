"""Runs scenarios (scenarios.py) in a process of their own, on the simulated driver or on the real one.

A process can't change its driver once it has one, and a broken context is the end of it; so each scenario gets a fresh one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.conftest import SLOWER

from kybernate.cuda import simulated
from kybernate.model.types import MIB

SCENARIOS = Path(__file__).with_name("scenarios.py")
Run = Callable[[str], None]


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a short path, for Unix sockets, on tmpfs: a driver pins no file of a disk."""
    path = Path(tempfile.mkdtemp(prefix="kyb-", dir="/dev/shm"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(params=["simulated", pytest.param("real", marks=pytest.mark.gpu)])
def scenario(request: pytest.FixtureRequest, directory: Path) -> Iterator[Run]:
    """Call it with the name of a function of scenarios.py."""
    environment = dict(os.environ)
    gpu = None
    if request.param == "simulated":
        gpu = simulated.make(directory / "gpu", size_bytes=320 * MIB)
        environment = simulated.environment([gpu], environment)

    def run(name: str) -> None:
        done = subprocess.run(
            [sys.executable, "-W", "error", SCENARIOS, name, directory],
            env=environment,
            capture_output=True,
            text=True,
            timeout=100 * SLOWER,
            check=False,
        )
        if done.returncode:
            pytest.fail(
                f"{name} ended with {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-6000:]}", pytrace=False
            )

    yield run
    if gpu is not None:
        simulated.remove(gpu.path)
