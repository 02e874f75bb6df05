"""On which GPUs the sizes of a file lie."""

from __future__ import annotations

import pytest

from kybernate.model.types import GIB, GpuUuid, WorkloadName
from kybernate.settings import parse
from kybernate.settings.specs import served_of
from kybernate.settings.vram_hints import hinted

pytestmark = pytest.mark.unit

A = WorkloadName("a")
GPUS = [GpuUuid(f"GPU-{letter}") for letter in "abc"]


@pytest.mark.parametrize(
    ("vram", "own", "agents", "laid"),
    [
        pytest.param("1GiB", None, None, {0: 1}, id="one size: the first GPU"),
        pytest.param("[1GiB, 2GiB]", None, None, {0: 1, 1: 2}, id="one for each"),
        pytest.param("[0, 2GiB]", None, None, {1: 2}, id="none of the first"),
        pytest.param("1GiB", "2", None, {2: 1}, id="the first that it sees"),
        pytest.param("[1GiB, 2GiB]", "2,0", None, {2: 1, 0: 2}, id="in its order"),
        pytest.param("1GiB", "GPU-b", None, {1: 1}, id="by its name"),
        pytest.param("1GiB", "7", "5,6,7", {2: 1}, id="by the numbers that the agent's variable has"),
        pytest.param("[1GiB, 2GiB]", "1", None, {1: 1, None: 2}, id="more than it sees"),
        pytest.param("1GiB", "9,0", None, {None: 1}, id="what comes after an unknown one isn't seen"),
    ],
)
def test_sizes_are_of_the_gpus_that_a_program_sees(
    vram: str, own: str | None, agents: str | None, laid: dict[int | None, int]
) -> None:
    environment = "" if own is None else f", environment: {{CUDA_VISIBLE_DEVICES: '{own}'}}"
    text = f"models:\n  a: {{command: x, port: 1, vram: {vram}{environment}}}\n"
    found = hinted(served_of(parse(text, origin="k.yaml"))[A], GPUS, agents)
    assert {GPUS.index(gpu) if gpu in GPUS else None: size // GIB for gpu, size in found.items()} == laid
