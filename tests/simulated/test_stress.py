"""Threads that allocate, map and compute without pause, in a process that is checkpointed over and over."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kybernate.cuda import simulated
from kybernate.cuda.simulated import SimulatedGpu
from kybernate.model.native import simulated_driver

from .conftest import SUCCESS, Process

SOURCE = Path(__file__).parents[2] / "native" / "tests" / "simulated" / "stress.c"
SANITIZERS = {"asan": ["-fsanitize=address,undefined"], "tsan": ["-fsanitize=thread"]}
CYCLES = 20
THREADS = 4


@pytest.fixture
def program(tmp_path: Path) -> Path:
    if not (compiler := shutil.which("cc")):
        pytest.skip("left out: needs a C compiler")
    out = tmp_path / "stress"
    flags = SANITIZERS.get(os.environ.get("KYBERNATE_SANITIZER", ""), [])
    words = [compiler, "-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", *flags, str(SOURCE), "-o", str(out)]
    clean = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    subprocess.run([*words, str(simulated_driver()), "-pthread"], check=True, env=clean)
    return out


def test_threads_keep_their_sums_through_checkpoints(
    program: Path, gpu: SimulatedGpu, start: Callable[..., Process]
) -> None:
    agent = start()
    with subprocess.Popen(
        [str(program), str(THREADS)],
        env=simulated.environment([gpu], os.environ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        for _ in range(CYCLES):
            agent.park(process.pid)
            assert gpu.used_bytes == 0
            agent.bring_back(process.pid)
        process.stdin.close()
        assert int(process.stdout.readline()) > 0
        assert process.wait() == SUCCESS
    assert gpu.used_bytes == 0
