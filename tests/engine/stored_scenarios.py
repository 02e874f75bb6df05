"""What test_parking.py runs, each in a process of its own: `python stored_scenarios.py NAME ROOT MEMORY`."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from stored_rig import SIZE, Node, eventually

from kybernate.engine.cancelling import Cancellation
from kybernate.engine.engine import Kind
from kybernate.model.errors import BadInput, Conflict, KybernateError, NoRoom, NotFound, Unsupported
from kybernate.model.types import CHUNK_BYTES, MIB, Backend, Depth, WorkloadName
from kybernate.process.tree import attach
from kybernate.store import Cancelled, Damaged


def expect(kind: type[Exception], action: Callable[[], object]) -> Exception:
    try:
        action()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def parked_and_back(root: Path, memory: Path) -> None:
    """Written, ended, read, brought back: it goes on with the content it had, and can be paused again as any other."""
    with Node(root, memory) as node:
        node.start("w")
        node.pause("w")
        node.park("w")
        assert node.pool.free_slots * CHUNK_BYTES == node.pool.size_bytes
        described = node.engine.describe(node.space, "w")
        assert (described.workload, described.kind, described.owner) == ("w", Kind.PARKED, 0)
        assert sum(described.vram_bytes.values()) == SIZE
        assert node.engine.refusals(node.space, "w") == []
        report = node.engine.stage(node.space, "w")
        assert report.bytes_read == SIZE
        assert node.engine.stage(node.space, "w").bytes_read == 0
        node.revive("w", "w")
        assert node.trees["w"].frozen
        assert not node.engine.staged(), "handed over"
        node.resume("w")
        node.goes_on("w")
        node.pause("w")
        node.resume("w")
        node.goes_on("w")
        node.exact_end("w")
        node.assert_idle()


def park(root: Path, memory: Path) -> None:
    """The first half, for another agent to go on."""
    with Node(root, memory) as node:
        node.start("w")
        node.pause("w")
        node.park("w")


def another_agent_resumes(root: Path, memory: Path) -> None:
    """One that has its own hash key and knows nothing of the first; afterwards the copy in RAM is clean for it."""
    with Node(root, memory, agent="b") as node:
        node.revive("w", "w")
        node.resume("w")
        copy = node.engine.host_copy(WorkloadName("w"))
        assert copy is not None
        assert copy.manifest.key is None
        node.goes_on("w")
        report = node.engine.pause(node.target("w"), depth=Depth.ZERO, timeout_s=10)
        assert report.bytes_clean > 0
        node.resume("w")
        node.exact_end("w")
        node.assert_idle()


def clones(root: Path, memory: Path) -> None:
    """Several workloads of one image, side by side: what they have in common is in RAM once."""
    with Node(root, memory, pool=320 * MIB) as node:
        node.start("w")
        node.pause("w")
        node.engine.snapshot(node.target("w"), node.space, "image", kind=Kind.IMAGE, labels={"of": "w"})
        node.resume("w")
        node.goes_on("w")
        free = node.pool.free_slots
        names = ["one", "two", "three"]
        for name in names:
            node.revive("image", name, keep_staged=True)
        assert node.pool.free_slots == free - SIZE // CHUNK_BYTES, "once for all"
        (staged,) = node.engine.staged()
        assert staged.bytes == SIZE
        for name in names:
            node.resume(name)
        for name in names:
            node.goes_on(name)
        for name in names:
            node.pause(name)
        used = free - node.pool.free_slots
        assert SIZE // CHUNK_BYTES < used < 4 * SIZE // CHUNK_BYTES
        node.engine.drop_staged(staged.uid)
        for name in [*names, "w"]:
            if name != "w":
                node.resume(name)
            node.goes_on(name)
        for name in [*names, "w"]:
            node.exact_end(name)
        node.assert_idle()


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
