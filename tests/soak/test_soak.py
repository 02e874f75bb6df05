"""A short round of `make soak`: real agents, CRIU and S3 server; orders and faults from a fixed seed."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import pytest
from tests.conftest import SLOWER
from tests.guardian import guarded
from tests.soak.plan import Fault, plan
from tests.soak.walk import Walk
from tests.soak.world import World
from tests.store.server import Server, Unbuildable

SEED, STEPS, SECONDS = 41, 40, 18.0
"""As many steps as fit into the time; on a slow machine that is fewer."""


@pytest.mark.root
@pytest.mark.timeout(300 * SLOWER)
@pytest.mark.filterwarnings(  # httpx2 leaves its socket open when an agent dies between its knock and its connecting
    "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_a_random_walk(tmp_path: Path) -> None:
    place = tmp_path / "s3"
    place.mkdir()
    try:
        server = Server(place)
    except Unbuildable as e:
        pytest.skip(str(e))
    root = Path(tempfile.mkdtemp(prefix="kyb-"))
    try:
        with guarded(root), World(root, server) as world:
            walk = Walk(world, say=print)
            end = time.monotonic() + SECONDS
            for step in plan(SEED, steps=STEPS):
                if time.monotonic() > end:
                    break
                print(step)
                walk.play(step)
            walk.settle()
    finally:
        server.close()


def test_a_seed_is_a_plan() -> None:
    """The same each time, and a longer one begins as a shorter one does; in some rounds everything happens."""
    assert plan(7, steps=30)[:10] == plan(7, steps=10)
    assert plan(7, steps=30) != plan(8, steps=30)
    steps = [step for seed in range(20) for step in plan(seed, steps=30)]
    assert {step.fault for step in steps} == set(Fault)
