"""Stage of bench/tiers.py: what many snapshots on the disk cost the agent in memory of its own.

The snapshots have as many chunks as the size asked for, each its own record in a pack and its own row in the catalog; but each
chunk shrinks to nearly nothing, so that they take minutes less to write and no disk. The agent's memory doesn't know the
difference: it holds what is said about chunks, never their content.
"""

from __future__ import annotations

import mmap
import time
from pathlib import Path

from tiers_plan import Plan, Recorder, anonymous_bytes, scratch, size_name

from kybernate.benchmarks.agent import OwnAgent
from kybernate.benchmarks.conversation import until
from kybernate.benchmarks.results import Case
from kybernate.engine.stored import Kind
from kybernate.model.types import CHUNK_BYTES, MIB, TierName
from kybernate.store import DEFAULT_TENANT, Catalog, LocalMedium, Tier, keys_of, open_writer

SNAPSHOTS = 10
POOL_BYTES = 64 * MIB


def snapshots(plan: Plan, recorder: Recorder) -> None:
    """See the module."""
    with scratch(plan.directory, "snapshots") as place:
        (place / "empty").mkdir()
        empty = _own_memory(plan, place / "empty")
        began = time.monotonic()
        _fill(place / "full", place / "made.db", plan.logical_bytes)
        recorder.say(
            f"{SNAPSHOTS} snapshots of together {size_name(plan.logical_bytes)} in {time.monotonic() - began:.1f} s"
        )
        full = _own_memory(plan, place / "full", count=SNAPSHOTS)
        recorder.case(
            Case(
                f"agent.memory_added.{size_name(plan.logical_bytes)}",
                "B",
                (max(0, full - empty),),
                notes={"with_none": empty, "with_all": full},
            )
        )


def _own_memory(plan: Plan, directory: Path, *, count: int = 0) -> int:
    """Of an agent that has taken in all snapshots of a directory, listed them and looked whether they are whole. Bytes."""
    store = {"directory": str(directory)}
    with OwnAgent(pool_bytes=POOL_BYTES, simulated_bytes=plan.simulated_bytes, settings={"store": store}) as agent:

        def listed() -> bool:
            tiers = agent.client.node().tiers
            return all(tier.state == "ready" for tier in tiers) and sum(tier.snapshots for tier in tiers) == count

        until(lambda: listed() or None, timeout_s=120, what=f"taking in {count} snapshots")
        agent.client.snapshots()
        agent.client.verify(tier=TierName.NVME, content=False)
        return anonymous_bytes(agent.pid)


def _fill(directory: Path, catalog_path: Path, total: int) -> None:
    each = max(1, total // SNAPSHOTS // CHUNK_BYTES)
    with mmap.mmap(-1, each * CHUNK_BYTES) as memory:
        # Only the first page of each chunk is ever written, and only that takes memory.
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        with memoryview(memory) as whole:
            views = [whole[k * CHUNK_BYTES : (k + 1) * CHUNK_BYTES] for k in range(each)]
            _write(directory, catalog_path, views)
            for view in views:
                view.release()


def _write(directory: Path, catalog_path: Path, views: list[memoryview]) -> None:
    catalog = Catalog(catalog_path)
    tier = Tier(LocalMedium(directory), catalog)
    tier.open()
    try:
        space = tier.space(keys_of(DEFAULT_TENANT))
        for number in range(SNAPSHOTS):
            for k, view in enumerate(views):
                view[:16] = number.to_bytes(8, "little") + (k + 1).to_bytes(8, "little")
            with open_writer(space, f"image-{number}", total=len(views) * CHUNK_BYTES) as writer:
                writer.add_extent(views)
                writer.commit(labels={"kind": Kind.IMAGE, "workload": "server", "uid": "0"})
    finally:
        tier.close()
        catalog.close()
