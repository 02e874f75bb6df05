"""Making and removing simulated GPUs."""

from __future__ import annotations

from pathlib import Path

import pytest

from kybernate.cuda import simulated
from kybernate.model.errors import BadInput, Conflict, NotFound
from kybernate.model.types import GpuUuid

from .conftest import GPU_BYTES


def test_made_described_removed(gpu_path: Path) -> None:
    made = simulated.make(gpu_path, size_bytes=GPU_BYTES)
    assert simulated.describe(gpu_path) == made
    assert made.used_bytes == 0
    assert "simulated" in str(made)
    assert simulated.present({simulated.VARIABLE: str(gpu_path)}) == (made,)
    simulated.remove(gpu_path)
    assert not gpu_path.exists()
    with pytest.raises(NotFound):
        simulated.describe(gpu_path)


def test_the_uuid_can_be_chosen(gpu_path: Path) -> None:
    uuid = GpuUuid("GPU-00112233-4455-6677-8899-aabbccddeeff")
    assert simulated.make(gpu_path, size_bytes=GPU_BYTES, uuid=uuid).uuid == uuid


@pytest.mark.parametrize("size", [0, -1, 1000])
def test_a_size_that_makes_no_sense(gpu_path: Path, size: int) -> None:
    with pytest.raises(BadInput):
        simulated.make(gpu_path, size_bytes=size)
    assert not gpu_path.exists()


def test_bad_words(gpu_path: Path) -> None:
    with pytest.raises(BadInput):
        simulated.make(gpu_path, size_bytes=GPU_BYTES, uuid=GpuUuid("GPU-nonsense"))
    with pytest.raises(BadInput):
        simulated.make(gpu_path / ("x" * 100), size_bytes=GPU_BYTES)


def test_what_is_there_is_not_overwritten(gpu_path: Path) -> None:
    simulated.make(gpu_path, size_bytes=GPU_BYTES)
    with pytest.raises(Conflict):
        simulated.make(gpu_path, size_bytes=GPU_BYTES)


def test_the_environment_puts_the_driver_in_front_once(gpu_path: Path) -> None:
    gpu = simulated.make(gpu_path, size_bytes=GPU_BYTES)
    once = simulated.environment([gpu], {"LD_LIBRARY_PATH": "/opt/lib", "HOME": "/root"})
    assert once["LD_LIBRARY_PATH"].endswith("/simulated:/opt/lib")
    assert simulated.environment([gpu], once) == once
