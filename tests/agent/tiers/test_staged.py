"""What is staged of a snapshot lies in the pool and on the disk for as long as it is of use: once the snapshot has gone, whoever
deleted it, nobody can resume or clone it any more. Through real agents; the GPU is simulated.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.agent.conftest import AgentProcess, MakeAgent
from tests.conftest import SLOWER, Eventually

from kybernate.model.api import SnapshotRequest
from kybernate.model.errors import NoRoom
from kybernate.model.types import MIB, TierName

pytestmark = [pytest.mark.root, pytest.mark.timeout(300 * SLOWER)]

SIZE = 16 * MIB


def started(agent: AgentProcess, eventually: Eventually, name: str, *, size: int = SIZE) -> None:
    agent.run_cuda(name, bytes_=size)
    eventually(lambda: agent.steps(name) > 2, timeout_s=60, what=f"{name} computes")


def held(agent: AgentProcess) -> tuple[int, list[Path]]:
    """Bytes of the pool, and the files of processes' images on their way."""
    pool = agent.client.node().pool
    assert pool is not None
    scratch = [path for place in agent.state.root.parent.glob("*-scratch-*") for path in place.rglob("*")]
    return pool.size_bytes - pool.free_bytes, scratch


@pytest.mark.parametrize("way", ["taken", "cloned"])
def test_an_image_that_another_agent_removed(
    make_agent: MakeAgent, bucket: Callable[..., str], eventually: Eventually, way: str
) -> None:
    first = make_agent(store=bucket())
    second = make_agent(store=bucket(), beside=first)
    taker = second if way == "taken" else first
    started(taker, eventually, "one")
    taker.client.snapshot("one", SnapshotRequest.of(image="gold", tier=TierName.OBJECT))
    taker.client.stop("one", remove=True)
    if way == "cloned":
        second.client.clone("gold", "two")
        second.client.stop("two", remove=True)
    size, files = held(second)
    assert size >= SIZE
    assert files
    second.client.collect()
    assert held(second) == (size, files), "it is there for further clones"
    first.client.remove_snapshot("gold")
    second.client.collect()
    assert held(second) == (0, [])
    first.client.collect()
    assert held(first) == (0, [])


def test_a_staged_workload_that_is_removed(make_agent: MakeAgent, eventually: Eventually) -> None:
    agent = make_agent()
    started(agent, eventually, "one")
    agent.client.pause("one", tier=TierName.NVME)
    agent.client.prefetch("one")
    assert held(agent)[0] >= SIZE
    agent.client.stop("one", remove=True)
    assert held(agent) == (0, [])


def test_a_clone_that_finds_no_room_leaves_no_images(
    make_agent: MakeAgent, bucket: Callable[..., str], eventually: Eventually
) -> None:
    first = make_agent(store=bucket())
    started(first, eventually, "one", size=80 * MIB)
    first.client.snapshot("one", SnapshotRequest.of(image="gold", tier=TierName.OBJECT))
    second = make_agent(store=bucket(), beside=first, pool=64 * MIB)
    with pytest.raises(NoRoom):
        second.client.clone("gold", "two")
    second.client.stop("two", remove=True)
    assert held(second) == (0, [])
    first.client.stop("one", remove=True)
