"""A process that the (simulated) driver has checkpointed is dumped and cloned, and its GPU memory comes back exact."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.conftest import Eventually
from tests.process.conftest import Workloads

from kybernate.cuda import simulated
from kybernate.cuda.simulated import SimulatedGpu
from kybernate.model.types import WorkloadName
from kybernate.process import images
from kybernate.process.dumping import dump
from kybernate.process.preflight import dumpable
from kybernate.process.restoring import restore
from kybernate.process.tree import Tree

from .conftest import ENVIRONMENT
from .dumps import FEATURES, feature, finish, wait_ready

pytestmark = pytest.mark.root

DRIVER = """
import ctypes, struct, sys
cuda = ctypes.CDLL("libcuda.so.1")
assert cuda.cuInit(0) == 0
for word in sys.argv[2:]:
    arguments = struct.pack("<I60x", 5000) if word == "Lock" else None
    result = getattr(cuda, "cuCheckpointProcess" + word)(int(sys.argv[1]), arguments)
    assert result == 0, (word, result)
"""


@pytest.fixture
def gpu() -> Iterator[SimulatedGpu]:
    directory = Path(tempfile.mkdtemp(prefix="kyb-gpu-"))
    directory.chmod(0o755)
    made = simulated.make(directory / "gpu", size_bytes=64 << 20)
    yield made
    simulated.remove(made.path)
    shutil.rmtree(directory)


@pytest.fixture
def driver(gpu: SimulatedGpu) -> Callable[..., None]:
    """Calls of the driver about another process."""

    def call(tree: Tree, *words: str) -> None:
        command = [sys.executable, "-c", DRIVER, str(tree.main_pid()), *words]
        done = subprocess.run(
            command, env=simulated.environment([gpu], os.environ), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    return call


@pytest.fixture
def tree(workloads: Workloads, eventually: Eventually, gpu: SimulatedGpu) -> Tree:
    found = workloads.launch(*feature("gpu"), directory=FEATURES, environment=simulated.environment([gpu], ENVIRONMENT))
    wait_ready(found, eventually)
    return found


def holdings(tree: Tree, gpu: SimulatedGpu) -> list[str]:
    """What the processes hold of the GPU."""
    found = []
    for pid in tree.pids():
        found += [line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if str(gpu.path) in line]
        found += [
            target for link in Path(f"/proc/{pid}/fd").iterdir() if str(gpu.path) in (target := str(link.readlink()))
        ]
    return found


def test_what_is_held_of_the_gpu_hinders_a_dump_until_it_is_given_up(
    tree: Tree, gpu: SimulatedGpu, driver: Callable[..., None]
) -> None:
    assert holdings(tree, gpu)
    assert any("maps memory of the GPU" in line for line in dumpable(tree, gpu_directories=[str(gpu.path)]))
    assert dumpable(tree, gpu_released=False, gpu_directories=[str(gpu.path)]) == []
    driver(tree, "Lock", "Checkpoint")
    assert holdings(tree, gpu) == []
    assert gpu.used_bytes == 0
    assert dumpable(tree, gpu_directories=[str(gpu.path)]) == []
    driver(tree, "Restore", "Unlock")
    finish(tree)


def test_clones_share_a_gpu(
    tree: Tree, elsewhere: Workloads, gpu: SimulatedGpu, driver: Callable[..., None], tmp_path: Path
) -> None:
    """The first one lives on beside its clones; each has its own memory."""
    driver(tree, "Lock", "Checkpoint")
    dump(tree, tmp_path / "images")
    images.verify(tmp_path / "images")
    driver(tree, "Restore", "Unlock")
    clones = []
    for name in ("one", "two"):
        run_directory = elsewhere.state_directory / "workloads" / name
        clones.append(restore(tmp_path / "images", name=WorkloadName(name), run_directory=run_directory).tree)
        elsewhere.trees.append(clones[-1])
    for clone in clones:
        driver(clone, "Restore", "Unlock")
    assert gpu.used_bytes >= 3 * (8 << 20)
    for life in (tree, *clones):
        driver(life, "Lock", "Checkpoint", "Restore", "Unlock")
        finish(life)
    assert gpu.used_bytes == 0
