"""What test_capture.py runs, each in a process of its own: `python stored_scenarios.py NAME ROOT MEMORY`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

from stored_rig import SIZE, Node

from kybernate.benchmarks.agent import workload_command
from kybernate.engine.engine import Kind
from kybernate.engine.faults import InjectedFault
from kybernate.model.cancelling import Cancellation
from kybernate.model.errors import BadInput, Cancelled, Conflict, NoRoom, NotFound, Unsupported
from kybernate.model.types import CHUNK_BYTES, MIB, Backend, Depth, WorkloadName
from kybernate.process.tree import attach
from kybernate.store import Damaged, collect


def expect(kind: type[Exception], action: Callable[[], object]) -> Exception:
    try:
        action()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def python(before: str) -> list[str]:
    """The usual program, with something done before."""
    program = f"{before}; import sys; from kybernate.benchmarks.workload import main; sys.exit(main())"
    return [sys.executable, "-c", program, "--bytes", str(SIZE), "--seed", "1", "--loop", "0.1", "--pace", "0.01"]


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
        node.start("w", workload_command(SIZE, "--commands", str(node.run_directory("w") / "commands")))
        node.pause("w")
        free = node.pool.free_slots
        node.engine.snapshot(node.target("w"), node.space, "image", kind=Kind.IMAGE, labels={"of": "w"})
        node.resume("w")
        chunks = SIZE // CHUNK_BYTES
        names = ["one", "two", "three"]
        for name in names:
            node.revive("image", name, keep_staged=True)
        assert node.pool.free_slots == free, "once for all, the original included"
        for name in names:
            node.resume(name)
        for name in names:  # each changes an eighth
            node.order(name, "1 dirty 0.125")
        for name in names:
            node.pause(name)
        assert node.pool.free_slots == free - len(names) * chunks // 8
        (staged,) = node.engine.staged()
        assert staged.bytes == SIZE
        assert node.engine.drop_staged(staged.uid) == 0, "the original has all of it in common"
        assert not list((root / "scratch-a").iterdir()), "the processes' images went with it"
        node.engine.stage(node.space, "image")
        assert node.pool.free_slots == free - len(names) * chunks // 8 - chunks, "read again, it is a copy of its own"
        assert node.engine.drop_staged(staged.uid) == SIZE
        node.resume("one")
        node.order("one", "2 dirty 1.0")
        node.pause("one")
        for name in (*names, "w"):
            if name != "w":
                node.resume(name)
            node.order(name, "3 verify")
        for name in [*names, "w"]:
            node.exact_end(name)
        node.assert_idle()


def park_what_was_found(root: Path, memory: Path) -> None:
    """It is paused in RAM as before, whether its snapshot came to be or not, and can be parked anew."""
    with Node(root, memory) as node:
        node.take_over("w")
        assert not node.space.snapshots()
        node.park("w")


def after_a_parking_died(root: Path, memory: Path) -> None:
    """The last one had written the snapshot; without it nothing is left of it, and the workload goes on from RAM."""
    with Node(root, memory) as node:
        node.take_over("w")
        assert [row.name for row in node.space.snapshots()] == ["w"]
        node.space.delete("w")
        collect(node.space)
        assert node.tier.usage().used == 0
        node.resume("w")
        node.goes_on("w")
        node.exact_end("w")
        node.assert_idle()


def revive_anew(root: Path, memory: Path) -> None:
    """What is there of its processes are leftovers; the snapshot is whole."""
    with Node(root, memory) as node:
        with contextlib.suppress(NotFound):
            attach(node.run_directory("w")).remove()
        node.engine.forget(WorkloadName("w"))
        node.assert_idle()
        node.revive("w", "w")


def after_a_revival_was_saved(root: Path, memory: Path) -> None:
    """An ordinary workload that is paused in RAM."""
    with Node(root, memory) as node:
        node.take_over("w")
        node.resume("w")
        node.goes_on("w")
        node.exact_end("w")
        node.assert_idle()


def steps_that_fail_leave_everything_as_it_was(root: Path, memory: Path) -> None:
    with Node(root, memory) as node:
        tree = node.start("w")
        node.pause("w")
        free = node.pool.free_slots
        for step in ("capture.dumped", "capture.written"):
            node.faults.step = step
            expect(InjectedFault, lambda: node.engine.snapshot(node.target("w"), node.space, "w"))
            assert tree.frozen
            assert not node.space.snapshots()
            assert list((root / "scratch-a").iterdir()) == []
            node.resume("w")
            node.goes_on("w")
            node.pause("w")
        node.park("w")
        for step in ("stage.read", "revive.restored"):
            node.faults.step = step
            expect(InjectedFault, lambda: node.revive("w", "w"))
            expect(NotFound, lambda: attach(node.run_directory("w")))
            node.assert_idle()
        node.revive("w", "w")
        assert node.pool.free_slots <= free + SIZE // CHUNK_BYTES
        node.resume("w")
        node.goes_on("w")
        node.exact_end("w")
        node.assert_idle()


def what_cannot_be_dumped_stays_paused(root: Path, memory: Path) -> None:
    """It is said beforehand and by name; the workload goes on."""
    with Node(root, memory) as node:
        tree = node.start("w", python("import os; kept = os.pipe2(os.O_DIRECT)"))
        node.pause("w")
        error = expect(Unsupported, lambda: node.engine.snapshot(node.target("w"), node.space, "w"))
        assert "keeps packets apart" in str(error)
        assert tree.frozen
        node.resume("w")
        node.goes_on("w")
        expect(Conflict, lambda: node.engine.snapshot(node.target("w"), node.space, "w"))
        node.exact_end("w")
        node.assert_idle()


def moved_by_the_driver_alone(root: Path, memory: Path) -> None:
    """No extents: all of it is in the processes' images."""
    with Node(root, memory) as node:
        node.start("w", backend=Backend.DRIVER)
        node.pause("w", Backend.DRIVER)
        node.park("w", Backend.DRIVER)
        described = node.engine.describe(node.space, "w")
        assert described.backend is Backend.DRIVER
        assert described.vram_bytes == {}
        assert described.bytes > SIZE
        node.revive("w", "w")
        node.resume("w", Backend.DRIVER)
        node.goes_on("w")
        node.exact_end("w")
        node.assert_idle()


def refusals_change_nothing(root: Path, memory: Path) -> None:
    """Names that are taken, snapshots that aren't there, hosts that lack something: a sentence each."""
    data = root / "needed"
    data.write_bytes(b"as it was")
    with Node(root, memory) as node:
        node.start("w", python(f"kept = open({str(data)!r})"))
        node.pause("w")
        expect(NotFound, lambda: node.engine.stage(node.space, "nothing"))
        expect(BadInput, lambda: node.engine.snapshot(node.target("w"), node.space, "../up"))
        node.engine.snapshot(node.target("w"), node.space, "w")
        expect(Conflict, lambda: node.engine.snapshot(node.target("w"), node.space, "w"))
        expect(Conflict, lambda: node.revive("w", "w"))
        assert node.trees["w"].frozen, "the one that is there was left alone"
        node.end("w")
        node.engine.forget(WorkloadName("w"))
        data.write_bytes(b"otherwise")
        (line,) = node.engine.refusals(node.space, "w")
        assert line == f"{data} has another content here"
        assert line in str(expect(BadInput, lambda: node.revive("w", "w")))
        data.unlink()
        assert "needed" in str(expect(BadInput, lambda: node.revive("w", "w")))
        assert not node.run_directory("w").exists()
        node.assert_idle()
        data.write_bytes(b"as it was")
        node.revive("w", "w")
        node.resume("w")
        node.goes_on("w")
        node.exact_end("w")
        node.assert_idle()


def damage_is_found_before_anything_starts(root: Path, memory: Path) -> None:
    with Node(root, memory) as node:
        node.start("w")
        node.pause("w")
        node.park("w")
        packs = sorted((root / "tier").rglob("packs/*"))
        whole = packs[0].read_bytes()
        broken = bytearray(whole)
        broken[len(broken) // 2] ^= 0x20
        packs[0].write_bytes(broken)
        expect(Damaged, lambda: node.revive("w", "w"))
        expect(NotFound, lambda: attach(node.run_directory("w")))
        node.assert_idle()


def too_small_a_pool_says_so(root: Path, memory: Path) -> None:
    """With the numbers. A staged snapshot that nobody uses makes room for another, and for a pause."""
    with Node(root, memory, pool=48 * MIB) as node:
        for name in ("one", "two"):
            node.start(name)
            node.pause(name)
            node.park(name)
        node.engine.stage(node.space, "one")
        node.engine.stage(node.space, "two")
        assert [view.snapshot for view in node.engine.staged()] == ["two"]
        node.start("w")
        node.pause("w")
        assert not node.engine.staged()
        error = expect(NoRoom, lambda: node.revive("one", "one"))
        assert str(SIZE) in str(error)
        expect(NotFound, lambda: attach(node.run_directory("one")))
        node.resume("w")
        node.goes_on("w")
        node.revive("one", "one")
        node.resume("one")
        node.goes_on("one")
        for name in ("w", "one"):
            node.exact_end(name)
        node.assert_idle()


def a_cancelled_step_leaves_nothing(root: Path, memory: Path) -> None:
    with Node(root, memory) as node:
        node.start("w")
        node.pause("w")
        cancel = Cancellation()
        cancel.cancel()
        expect(Cancelled, lambda: node.engine.snapshot(node.target("w"), node.space, "w", cancel=cancel))
        assert not node.space.snapshots()
        late = Cancellation()
        node.faults.step, node.faults.then = "capture.written", late.cancel
        expect(Cancelled, lambda: node.engine.snapshot(node.target("w"), node.space, "w", cancel=late))
        assert not node.space.snapshots()
        node.faults.then = None
        node.park("w")
        expect(Cancelled, lambda: node.engine.stage(node.space, "w", cancel=cancel))
        revive = node.engine.revive
        run = node.run_directory("w")
        expect(Cancelled, lambda: revive(node.space, "w", WorkloadName("w"), run_directory=run, cancel=cancel))
        expect(NotFound, lambda: attach(run))
        node.assert_idle()
        node.revive("w", "w")
        node.resume("w")
        node.exact_end("w")
        node.assert_idle()


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
