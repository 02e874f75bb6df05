"""What test_scenarios.py runs, each in a process of its own: `python scenarios.py NAME DIRECTORY`.

Each function stands for one promise of the GPU side and holds on the simulated driver and on a real GPU alike.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rig import NAME, WORDS, Rig, allocate, ask, connect, eventually, listening, records

from kybernate.cuda import kernels, link, packets, residual, wire
from kybernate.cuda.broker import Verdict
from kybernate.cuda.copying import ExtentCopy
from kybernate.cuda.driver import call, open_gpus
from kybernate.cuda.extents import Extent, held
from kybernate.cuda.hashing import HashKey, load_key, reference
from kybernate.cuda.planning import NO_SLOT
from kybernate.cuda.residual import ResidualState
from kybernate.cuda.wire import Flag, Message, Record, Status, Type
from kybernate.engine.context import refuse_newcomers
from kybernate.engine.copies import HeldExtent, Manifest
from kybernate.engine.engine import Engine, HostCopy
from kybernate.engine.threads import Threads
from kybernate.model.errors import BadInput, Busy, Conflict, KybernateError, NoRoom, Unsupported, WorkloadLost
from kybernate.model.types import CHUNK_BYTES, MIB, Depth, ExtentId, HostPid, WorkloadName

# -- extents -----------------------------------------------------------------------------------------------------------


def memory_comes_back_as_zeros(rig: Rig) -> None:
    """Facts: fresh memory reads as zeros, so nothing leaks and zero chunks need no write."""
    for _ in range(3):
        extents = rig.create(8 * MIB, 2 * MIB)
        for extent in extents:
            assert not rig.read(extent).any()
            for chunk in range(extent.chunks):
                rig.write(extent, chunk, np.full(WORDS, 0xDEADBEEF, dtype=np.uint32))
        rig.broker.drop(extents)


def account_is_exact(rig: Rig) -> None:
    free = rig.gpu.free_bytes()
    one = rig.create(8 * MIB, 2 * MIB)
    two = rig.create(4 * MIB, pid=2)
    assert rig.broker.resident_bytes() == 14 * MIB
    assert rig.broker.resident_bytes(NAME, rig.gpu) == 14 * MIB
    assert rig.broker.resident_bytes(WorkloadName("other")) == 0
    assert rig.broker.extents(NAME, HostPid(2)) == two
    assert len({extent.id for extent in one + two}) == 3
    rig.broker.drop([one[0], *two])
    rig.broker.drop([one[0], *two])
    assert rig.broker.extents(NAME) == [one[1]]
    rig.broker.drop(one)
    assert rig.broker.resident_bytes() == 0
    assert rig.gpu.free_bytes() == free


def too_much_is_refused_whole(rig: Rig) -> None:
    free = rig.gpu.free_bytes()
    half = free // 2 // CHUNK_BYTES * CHUNK_BYTES
    error = expect(NoRoom, lambda: rig.create(half, half, half))
    assert str(rig.gpu.total_bytes) in str(error)
    assert rig.gpu.free_bytes() == free
    assert rig.broker.resident_bytes() == 0


def held_extents_stay_mapped(rig: Rig) -> None:
    """A workload that dies during a copy must not break the agent's context."""
    extents = rig.create(4 * MIB, 4 * MIB)
    free = rig.gpu.free_bytes()
    with held(extents):
        rig.broker.drop(extents)
        assert rig.broker.resident_bytes() == 0
        assert not rig.read(extents[0]).any()
        assert rig.gpu.free_bytes() == free
    assert rig.gpu.free_bytes() == free + 8 * MIB
    assert "has ended, or has freed" in str(expect(WorkloadLost, lambda: rig.hasher.hash(extents)))


def a_new_agent_adopts(rig: Rig) -> None:
    """The workload keeps the descriptors: memory outlives its creator and comes back into account under its old id."""
    extent = rig.create(4 * MIB)[0]
    rig.write(extent, 1, np.arange(WORDS, dtype=np.uint32))
    fd = rig.broker.export(extent)
    record = Record(extent.id, 0, extent.size, rig.gpu.uuid_bytes)
    assert rig.broker.adopt(workload=NAME, pid=extent.pid, gpu=rig.gpu, record=record, fd=fd) is extent
    other = {"workload": NAME, "pid": HostPid(extent.pid + 1), "gpu": rig.gpu}
    expect(Conflict, lambda: rig.broker.adopt(**other, record=record, fd=fd))
    rig.broker.drop([extent])
    wrong = Record(record.id, 0, 3 * MIB, record.gpu)
    expect(BadInput, lambda: rig.broker.adopt(workload=NAME, pid=extent.pid, gpu=rig.gpu, record=wrong, fd=fd))
    with open(os.devnull) as nothing:  # noqa: PTH123 - a descriptor that is no memory
        number = nothing.fileno()
        expect(BadInput, lambda: rig.broker.adopt(workload=NAME, pid=extent.pid, gpu=rig.gpu, record=record, fd=number))
    before = fds_open()
    again = rig.broker.adopt(workload=NAME, pid=extent.pid, gpu=rig.gpu, record=record, fd=fd)
    assert again.id == extent.id
    assert (rig.read(again)[1] == np.arange(WORDS)).all()
    copy = rig.broker.export(again)  # an imported handle can't be exported: a copy of the descriptor is
    rig.broker.drop([again])
    third = rig.broker.adopt(workload=NAME, pid=extent.pid, gpu=rig.gpu, record=record, fd=copy)
    assert (rig.read(third)[1] == np.arange(WORDS)).all()
    rig.broker.drop([third])
    os.close(copy)
    assert fds_open() == before
    os.close(fd)


def made_up_ids_are_in_nobodys_way(rig: Rig) -> None:
    """A process names its own extents: neither another workload's nor its own next ones can be blocked by that."""
    mine = rig.create(2 * MIB)[0]
    fd = rig.broker.export(mine)
    attacker = WorkloadName("attacker")

    def claim(number: int) -> Extent:
        record = Record(ExtentId(number), 0, mine.size, rig.gpu.uuid_bytes)
        adopted: Extent = rig.broker.adopt(workload=attacker, pid=HostPid(9), gpu=rig.gpu, record=record, fd=fd)
        return adopted

    claimed = [claim(mine.id), claim(mine.id + 1)]
    rig.broker.drop([mine])  # paused; and resumed:
    assert rig.broker.create(workload=NAME, pid=mine.pid, gpu=rig.gpu, sizes=[2 * MIB], ids=[mine.id])
    new = rig.broker.create(workload=attacker, pid=HostPid(9), gpu=rig.gpu, sizes=[2 * MIB])
    assert new[0].id != claimed[1].id
    assert rig.broker.extents(attacker) == [*claimed, *new]
    os.close(fd)


def copies_in_use_are_not_given_up(rig: Rig) -> None:
    """Another workload's pause may take the slots of a cache, but not of one that a pause is building on just now."""
    engine = Engine(
        broker=rig.broker, pool=rig.pool, copiers={rig.gpu.uuid: rig.engine}, directory=rig.directory / "copies"
    )
    slots = rig.pool.allocate(2)
    free = rig.pool.free_slots
    copy = ExtentCopy(size=4 * MIB, rdma=False, slots=slots, hashes=np.ones((2, 2), dtype=np.uint64))
    held_extent = HeldExtent(HostPid(1), ExtentId(1), 0, rig.gpu.uuid, copy)
    host_copy = HostCopy(Manifest(NAME, Depth.ZERO, [held_extent]), paused=False, pausing=True)
    engine._pooled.put(NAME, host_copy)
    assert engine.drop_cache(NAME) == 0
    assert rig.pool.free_slots == free
    host_copy.pausing = False
    assert engine.drop_cache(NAME) == 4 * MIB
    engine.close()


def newcomers_are_not_checkpointed(rig: Rig) -> None:
    """A locked process that maps extents which nobody has taken from it: the driver would never restore it."""
    engine = Engine(
        broker=rig.broker, pool=rig.pool, copiers={rig.gpu.uuid: rig.engine}, directory=rig.directory / "copies"
    )
    rig.create(2 * MIB, pid=7)
    refuse_newcomers(engine._parts, NAME, [HostPid(7), HostPid(8)], known={HostPid(7)})
    refuse_newcomers(engine._parts, NAME, [HostPid(8)], known=())
    expect(Busy, lambda: refuse_newcomers(engine._parts, NAME, [HostPid(7), HostPid(8)], known={HostPid(8)}))
    engine.close()


def the_engine_never_queues(rig: Rig) -> None:
    """A resume that waits for VRAM must not hold what the pause it waits for needs."""
    threads = Threads("test")
    gate = threading.Event()
    waiting = [threads.submit(gate.wait, 30) for _ in range(100)]
    assert threads.submit(lambda: 7).result(60) == 7
    gate.set()
    assert all(future.result(60) for future in waiting)
    threads.shutdown()


# -- hashing -----------------------------------------------------------------------------------------------------------


def hash_tells_every_change(rig: Rig) -> None:
    extent = rig.create(16 * MIB)[0]
    assert not rig.hasher.hash([extent]).any(), "zeros hash to (0, 0)"
    generator = np.random.default_rng(7)
    base = generator.integers(0, 2**32, WORDS, dtype=np.uint32)

    def digest(words: np.ndarray) -> tuple[int, int]:
        rig.write(extent, 3, words)
        low, high = rig.hasher.hash([extent])[3].tolist()
        return low, high

    seen = {digest(base)}
    changes = [(0, 1), (1, 1 << 31), (WORDS - 1, 1), (WORDS // 2, 1 << 16), (2048, 1), (2049, 1)]
    for place, bits in changes:
        changed = base.copy()
        changed[place] ^= bits
        seen.add(digest(changed))
    for one, other in ((0, 1), (0, 4), (0, 2048), (4, WORDS - 4), (1000, 100_000)):
        swapped = base.copy()
        swapped[[one, other]] = swapped[[other, one]]
        seen.add(digest(swapped))
    for shift in (1, 2, 4, 2048, WORDS // 2):
        seen.add(digest(np.roll(base, shift)))
    for value in (1, 0xFFFFFFFF):  # chunks of one word repeated, and a single word somewhere
        seen.add(digest(np.full(WORDS, value, dtype=np.uint32)))
        for place in (0, 1, 2047, WORDS - 1):
            lone = np.zeros(WORDS, dtype=np.uint32)
            lone[place] = value
            seen.add(digest(lone))
    assert len(seen) == 1 + 6 + 5 + 5 + 2 + 8
    assert (0, 0) not in seen
    assert digest(base) in seen, "the same content has the same hash"
    assert not rig.hasher.hash([extent])[[0, 1, 2, 4, 5, 6, 7]].any()


def hash_agrees_with_its_twin(rig: Rig) -> None:
    """The kernel against numpy. The simulated driver's built-in hash is another one."""
    if rig.gpu.simulated:
        return
    extents = rig.create(8 * MIB, 2 * MIB, 6 * MIB)
    generator = np.random.default_rng(11)
    for extent in extents:
        for chunk in range(extent.chunks):
            words = generator.integers(0, 2**32, WORDS, dtype=np.uint32)
            if chunk == 1:
                words[: WORDS - 5] = 0
            if chunk != 2:
                rig.write(extent, chunk, words)
    content = np.concatenate([rig.read(extent) for extent in extents]).view(np.uint64)
    assert (rig.hasher.hash(extents) == reference(content, rig.key)).all()


def kernels_are_compiled_once(rig: Rig) -> None:
    if rig.gpu.simulated:
        assert kernels.image(rig.gpu) == kernels.SIMULATED_IMAGE
        return
    (kept,) = rig.directory.glob("kernels-*.cubin")
    good = kernels.image(rig.gpu, cache=rig.directory)
    kept.write_bytes(kept.read_bytes()[:-1] + b"?")
    assert kernels.image(rig.gpu, cache=rig.directory) == good, "a damaged entry is compiled anew"
    kept.write_bytes(b"")
    assert kernels.image(rig.gpu, cache=rig.directory) == good
    error = expect(Unsupported, lambda: kernels.compile_source("nonsense;", "sm_90"))
    assert "kernels.cu(1)" in str(error)
    nowhere = kept / "file" / "is" / "no" / "directory"
    assert kernels.image(rig.gpu, cache=nowhere) == good, "a cache that can't be written only costs time"


def key_is_kept(rig: Rig) -> None:
    path = rig.directory / "other.key"
    first = load_key(path)
    assert load_key(path) == first
    assert load_key(rig.directory / "third.key") != first
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(b"short")
    expect(KybernateError, lambda: load_key(path))
    assert reference(np.zeros((1, CHUNK_BYTES // 8), dtype=np.uint64), HashKey(1, 2)).tolist() == [[0, 0]]


# -- copying -----------------------------------------------------------------------------------------------------------


def content_survives_any_number_of_rounds(rig: Rig) -> None:
    """Random writes, evictions and fills against a plain picture of the memory; slots are never lost."""
    rng = random.Random(3)
    sizes = [8 * MIB, 2 * MIB, 6 * MIB]
    model = [np.zeros((size // CHUNK_BYTES, WORDS), dtype=np.uint32) for size in sizes]
    extents = rig.create(*sizes)
    previous: dict[ExtentId, ExtentCopy] = {}
    dirtied = 0
    for number in range(15):
        for index, extent in enumerate(extents):
            for chunk in range(extent.chunks):
                match rng.randrange(6):
                    case 0:
                        words = np.full(WORDS, rng.getrandbits(32), dtype=np.uint32)
                    case 1:
                        words = np.zeros(WORDS, dtype=np.uint32)
                    case 2:
                        words = model[index][chunk].copy()
                        words[rng.randrange(WORDS)] ^= 1 << rng.randrange(32)
                    case _:
                        continue
                dirtied += int((words != model[index][chunk]).any())
                model[index][chunk] = words
                rig.write(extent, chunk, words)
        plan = rig.engine.plan(extents, previous)
        stats = plan.stats
        assert stats.bytes_total == sum(sizes) == stats.bytes_dirty + stats.bytes_clean + stats.bytes_zero
        assert stats.bytes_dirty <= dirtied * CHUNK_BYTES, "clean chunks aren't copied"
        assert stats.bytes_zero == sum(int((~part.any(axis=1)).sum()) for part in model) * CHUNK_BYTES
        if number % 5 == 4:
            rig.engine.abandon(plan)  # the workload runs on
            continue
        dirtied = 0
        order: list[Extent] = []
        moved = rig.engine.evict(plan, done=order.extend)
        assert moved.bytes_copied == stats.bytes_dirty
        to_copy = [extent for i, extent in enumerate(extents) if plan.runs.first[i] < plan.runs.first[i + 1]]
        assert order == [extent for extent in extents if extent not in to_copy] + to_copy
        used = np.concatenate([copy.slots[copy.slots != NO_SLOT] for copy in plan.copies])
        assert len(np.unique(used)) == len(used)
        assert rig.pool.free_slots == rig.pool.size_bytes // CHUNK_BYTES - len(used)
        for copy, part in zip(plan.copies, model, strict=True):
            for slot, chunk_words in zip(copy.slots.tolist(), part, strict=True):
                assert (slot == NO_SLOT) == (not chunk_words.any())
                if slot != NO_SLOT:
                    assert (rig.slot_content(slot) == chunk_words).all()
        rig.broker.drop(extents)
        extents = rig.create(*sizes)
        back = rig.engine.fill([(extents, plan.copies)])
        assert back.bytes_copied == sum(sizes) - stats.bytes_zero
        for extent, part in zip(extents, model, strict=True):
            assert (rig.read(extent) == part).all()
        assert rig.engine.differing(extents, plan.copies) == 0
        previous = {extent.id: copy for extent, copy in zip(extents, plan.copies, strict=True)}


def no_room_takes_nothing(rig: Rig) -> None:
    free = rig.pool.free_slots
    extents = rig.create(64 * MIB, 64 * MIB, 32 * MIB)
    for extent in extents:
        for chunk in range(extent.chunks):
            rig.write(extent, chunk, np.full(WORDS, chunk + 1, dtype=np.uint32))
    error = expect(NoRoom, lambda: rig.engine.plan(extents, {}))
    for number in (160 * MIB, free * CHUNK_BYTES, rig.pool.size_bytes):
        assert str(number) in str(error)
    assert rig.pool.free_slots == free
    plan = rig.engine.plan(extents[:1], {})
    assert plan.stats.bytes_taken == 64 * MIB
    rig.engine.abandon(plan)
    rig.engine.abandon(plan)
    assert rig.pool.free_slots == free


def a_broken_eviction_leaves_the_truth(rig: Rig) -> None:
    """Slots that were being overwritten never count as clean again, even for the content they had before."""
    extent = rig.create(8 * MIB)[0]
    one, two = (np.full(WORDS, value, dtype=np.uint32) for value in (1, 2))
    for chunk in range(4):
        rig.write(extent, chunk, one)
    plan = rig.engine.plan([extent], {})
    rig.engine.evict(plan)
    previous = {extent.id: plan.copies[0]}
    rig.write(extent, 2, two)
    rig.write(extent, 3, np.zeros(WORDS, dtype=np.uint32))
    broken = rig.engine.plan([extent], previous)

    def fail(_: object) -> None:
        raise RuntimeError("on purpose")

    expect(RuntimeError, lambda: rig.engine.evict(broken, done=fail))
    rig.engine.abandon(broken)
    rig.write(extent, 2, one)
    rig.write(extent, 3, one)
    again = rig.engine.plan([extent], previous)
    assert again.stats.bytes_dirty == CHUNK_BYTES, "chunk 2 only: 3 was never overwritten"
    rig.engine.evict(again)
    assert all((rig.slot_content(slot) == one).all() for slot in again.copies[0].slots.tolist())
    assert rig.pool.free_slots == rig.pool.size_bytes // CHUNK_BYTES - 4
    expect(ValueError, lambda: rig.engine.evict(again))


def shared_slots_are_never_written(rig: Rig) -> None:
    """Two clones have their content in common until one changes it; it gets a slot of its own, the other's stays as it is."""
    extent = rig.create(8 * MIB)[0]
    for chunk in range(4):
        rig.write(extent, chunk, np.full(WORDS, chunk + 1, dtype=np.uint32))
    plan = rig.engine.plan([extent], {})
    rig.engine.evict(plan)
    other = plan.copies[0]
    rig.pool.share(other.slots)
    mine = ExtentCopy(other.size, other.rdma, other.slots.copy(), other.hashes.copy())
    rig.write(extent, 1, np.full(WORDS, 50, dtype=np.uint32))
    rig.write(extent, 2, np.zeros(WORDS, dtype=np.uint32))
    free = rig.pool.free_slots

    given_up = rig.engine.plan([extent], {extent.id: mine})
    assert rig.pool.free_slots == free - 1
    rig.engine.abandon(given_up)
    assert rig.pool.free_slots == free
    assert (mine.slots == other.slots).all(), "abandoned before it began: nothing changed"

    broken = rig.engine.plan([extent], {extent.id: mine})
    rig.engine.evict(broken)
    assert rig.pool.free_slots == free - 1, "the other still has what changed and what became zero"
    rig.engine.abandon(broken)
    assert rig.pool.free_slots == free
    assert (mine.slots == [other.slots[0], NO_SLOT, NO_SLOT, other.slots[3]]).all()

    final = rig.engine.plan([extent], {extent.id: mine})
    assert (final.stats.bytes_clean, final.stats.bytes_dirty, final.stats.bytes_zero) == (4 * MIB, 2 * MIB, 2 * MIB)
    rig.engine.evict(final)
    for chunk in range(4):
        assert (rig.slot_content(int(other.slots[chunk])) == chunk + 1).all()
    assert (rig.slot_content(int(final.copies[0].slots[1])) == 50).all()
    assert rig.engine.differing([extent], final.copies) == 0
    rig.pool.free(other.slots)
    kept = final.copies[0].slots
    rig.pool.free(kept[kept >= 0])
    assert rig.pool.free_slots == free + 4
    rig.broker.drop([extent])


def hashes_of_another_agent_compare(rig: Rig) -> None:
    """Under their own key; a copy that came with them counts as clean once it was hashed again."""
    foreign = HashKey(3, 4)
    extents = rig.create(4 * MIB, 2 * MIB)
    rig.write(extents[0], 1, np.full(WORDS, 9, dtype=np.uint32))
    rig.write(extents[1], 0, np.full(WORDS, 8, dtype=np.uint32))
    plan = rig.engine.plan(extents, {})
    rig.engine.evict(plan)
    for copy, part in zip(plan.copies, np.split(rig.hasher.hash(extents, foreign), [2]), strict=True):
        copy.hashes = part
    assert rig.engine.differing(extents, plan.copies) == 2
    assert rig.engine.differing(extents, plan.copies, foreign) == 0
    own = rig.engine.hashes(extents)
    assert [len(part) for part in own] == [2, 1]
    for copy, part in zip(plan.copies, own, strict=True):
        copy.hashes = part
    again = rig.engine.plan(extents, {e.id: c for e, c in zip(extents, plan.copies, strict=True)})
    assert again.stats.bytes_clean == 4 * MIB
    rig.broker.drop(extents)


def both_directions_at_once(rig: Rig) -> None:
    """One workload leaves while another comes."""
    going, coming = rig.create(24 * MIB, 24 * MIB), rig.create(24 * MIB, 24 * MIB, pid=2)
    for number, extent in enumerate(going + coming):
        for chunk in range(extent.chunks):
            rig.write(extent, chunk, np.full(WORDS, number * 100 + chunk + 1, dtype=np.uint32))
    parked = rig.engine.plan(coming, {})
    rig.engine.evict(parked)
    rig.broker.drop(coming)
    coming = rig.create(24 * MIB, 24 * MIB, pid=2)
    plan = rig.engine.plan(going, {})
    failures: list[BaseException] = []

    def guarded(action: Callable[[], object]) -> None:
        try:
            action()
        except BaseException as e:
            failures.append(e)

    threads = [
        threading.Thread(target=guarded, args=(lambda: rig.engine.evict(plan),)),
        threading.Thread(target=guarded, args=(lambda: rig.engine.fill([(coming, parked.copies)]),)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    for number, extent in enumerate(coming):
        assert (rig.read(extent)[:, 0] == np.arange(12) + (number + 2) * 100 + 1).all()
    for number, copy in enumerate(plan.copies):
        for chunk, slot in enumerate(copy.slots.tolist()):
            assert (rig.slot_content(slot) == number * 100 + chunk + 1).all()


def the_pool_outlives_the_agent(rig: Rig) -> None:
    extent = rig.create(8 * MIB)[0]
    for chunk in (0, 2):
        rig.write(extent, chunk, np.full(WORDS, chunk + 5, dtype=np.uint32))
    plan = rig.engine.plan([extent], {})
    rig.engine.evict(plan)
    rig.broker.drop([extent])
    rig.close()
    new = Rig(rig.directory, gpus=rig.gpus)
    copy = plan.copies[0]
    new.pool.claim(copy.slots[copy.slots >= 0])
    fresh = new.create(8 * MIB)
    new.engine.fill([(fresh, [copy])])
    assert new.read(fresh[0])[:, 9].tolist() == [5, 0, 7, 0]
    again = new.engine.plan(fresh, {fresh[0].id: copy})
    assert (again.stats.bytes_dirty, again.stats.bytes_clean) == (0, 4 * MIB), "the key was kept, so the hashes agree"
    new.close()


def the_link_is_measured(rig: Rig) -> None:
    limits = link.measure(rig.gpu, size_bytes=4 * MIB, repeats=3)
    assert min(limits.to_gpu, limits.to_host, limits.both) > 0


# -- requests ----------------------------------------------------------------------------------------------------------


def a_door_gives_memory(rig: Rig) -> None:
    rig.policy.gate.set()
    before = fds_open()
    with listening(rig) as path:
        assert path.stat().st_mode & 0o777 == 0o600
        answers, _ = ask(path, Message(Type.HELLO, argument=77))
        assert answers[0].status is Status.OK
        assert rig.policy.hellos == [(NAME, os.getpid(), 77)]
        before_exec = rig.create(2 * MIB, pid=os.getpid())
        ask(path, Message(Type.HELLO, argument=77))
        assert not rig.broker.extents(NAME), f"{before_exec} was the memory of the program before its exec"
        answers, fds = allocate(path, rig.gpu, 150 * MIB)
        assert [record.size for record in records(answers)] == [64 * MIB, 64 * MIB, 22 * MIB]
        assert len(fds) == 3
        assert rig.broker.resident_bytes(NAME) == 150 * MIB
        assert {extent.pid for extent in rig.broker.extents(NAME)} == {os.getpid()}
        packets.close_all(fds)
        answers, _ = ask(path, Message(Type.FREE, records=tuple(records(answers))))
        assert answers[0].status is Status.OK
        assert rig.broker.resident_bytes() == 0
        answers, fds = allocate(path, rig.gpu, 150 * MIB, Flag.SINGLE)
        assert [record.size for record in records(answers)] == [150 * MIB]
        packets.close_all(fds)
        rig.broker.drop(rig.broker.extents(NAME))
    assert not path.exists()
    eventually(lambda: fds_open() == before, f"no descriptor left over: {fds_open()} instead of {before}")


def long_answers_come_in_packets(rig: Rig) -> None:
    """More extents than fit one packet, each with its descriptor, in order."""
    count = 140
    rig.broker._extent_bytes = CHUNK_BYTES  # below what anyone may set, or the memory here wouldn't do
    with listening(rig) as path:
        answers, fds = allocate(path, rig.gpu, count * CHUNK_BYTES)
        assert [len(answer.records) for answer in answers] == [128, 12]
        assert [answer.more for answer in answers] == [True, False]
        assert len(fds) == count
        for extent in rig.broker.extents(NAME):
            rig.write(extent, 0, np.full(4, extent.id & 0xFFFFFFFF, dtype=np.uint32))
        named = records(answers)
        rig.broker.drop(rig.broker.extents(NAME))
        for record, fd in zip(named, fds, strict=True):
            extent = rig.broker.adopt(workload=NAME, pid=HostPid(1), gpu=rig.gpu, record=record, fd=fd)
            assert rig.read(extent)[0, 0] == record.id & 0xFFFFFFFF, "the descriptors are in the records' order"
        packets.close_all(fds)


def doors_refuse_what_makes_no_sense(rig: Rig) -> None:
    mine = rig.create(4 * MIB, pid=os.getpid())[0]
    others = rig.broker.create(workload=WorkloadName("other"), pid=HostPid(os.getpid()), gpu=rig.gpu, sizes=[2 * MIB])[
        0
    ]
    not_my_pid = rig.create(2 * MIB, pid=1)[0]
    resident = rig.broker.resident_bytes()
    with listening(rig) as path:
        uuid = rig.gpu.uuid_bytes
        bad = [
            Message(Type.ALLOCATE, argument=0, gpu=uuid),
            Message(Type.ALLOCATE, argument=CHUNK_BYTES + 1, gpu=uuid),
            Message(Type.ALLOCATE, argument=rig.gpu.total_bytes // CHUNK_BYTES * CHUNK_BYTES + CHUNK_BYTES, gpu=uuid),
            Message(Type.ALLOCATE, argument=2**64 - CHUNK_BYTES, gpu=uuid),
            Message(Type.ALLOCATE, argument=CHUNK_BYTES, gpu=b"x" * 16),
            Message(Type.WAIT, argument=3, gpu=uuid),
            Message(Type.HELLO, argument=0),
            Message(Type.HELLO, argument=2**40),
            Message(Type.QUIESCE),
            Message(Type.STATUS, answer=True),
            *(Message(Type.FREE, records=(Record(i, 0, 0),)) for i in (others.id, not_my_pid.id, ExtentId(5))),
            Message(Type.FREE, records=(Record(mine.id, 0, 0), Record(others.id, 0, 0))),
        ]
        for message in bad:
            answers, fds = ask(path, message)
            assert answers[0].status is Status.BAD_REQUEST, message
            assert answers[0].reason
            assert not fds
        assert rig.broker.resident_bytes() == resident
        answers, _ = ask(path, Message(Type.FREE, records=(Record(mine.id, 0, 0),)))
        assert answers[0].status is Status.OK


def verdicts_are_told(rig: Rig) -> None:
    with listening(rig) as path:
        rig.policy.verdict = Verdict.WAIT
        assert allocate(path, rig.gpu, MIB * 2)[0][0].status is Status.WAIT_FIRST
        rig.policy.verdict = Verdict.NEVER
        answer = allocate(path, rig.gpu, MIB * 2)[0][0]
        assert (answer.status, "ever" in answer.reason) == (Status.OUT_OF_MEMORY, True)
        rig.policy.verdict = Verdict.GRANT
        # The admission promises more than there is: wait, and in the end never, so that nobody asks for ever.
        hog = rig.create(rig.gpu.free_bytes() // CHUNK_BYTES * CHUNK_BYTES - 4 * MIB)
        told = [allocate(path, rig.gpu, 64 * MIB)[0][0].status for _ in range(3)]
        assert told == [Status.WAIT_FIRST, Status.WAIT_FIRST, Status.OUT_OF_MEMORY]
        rig.broker.drop(hog)
        answers, fds = allocate(path, rig.gpu, 64 * MIB)
        assert answers[0].status is Status.OK
        packets.close_all(fds)


def waiting_blocks_nobody_else(rig: Rig) -> None:
    with listening(rig) as path:
        waiting = connect(path)
        packets.send(waiting, Message(Type.WAIT, argument=2 * MIB, gpu=rig.gpu.uuid_bytes))
        gone = connect(path)
        packets.send(gone, Message(Type.WAIT, argument=2 * MIB, gpu=rig.gpu.uuid_bytes))
        gone.close()
        assert ask(path, Message(Type.HELLO, argument=1))[0][0].status is Status.OK
        rig.policy.gate.set()
        came = packets.receive(waiting)
        assert came is not None
        assert (came[0].type, came[0].status) == (Type.WAIT, Status.OK)
        rig.policy.room = False
        answer = ask(path, Message(Type.WAIT, argument=2 * MIB, gpu=rig.gpu.uuid_bytes))[0][0]
        assert answer.status is Status.OUT_OF_MEMORY
        waiting.close()


def who_hangs_up_gets_nothing(rig: Rig) -> None:
    before = fds_open()
    with listening(rig) as path:
        for _ in range(20):
            peer = connect(path)
            packets.send(peer, Message(Type.ALLOCATE, argument=4 * MIB, gpu=rig.gpu.uuid_bytes))
            peer.close()
        ask(path, Message(Type.HELLO, argument=1))
        eventually(lambda: rig.broker.resident_bytes() == 0, "memory of peers that hung up is taken back")
    eventually(lambda: fds_open() == before, "no descriptor left over")


def garbage_changes_nothing(rig: Rig) -> None:
    """Fuzz: any packet, damaged packets with descriptors, several at once. The broker answers or hangs up, and serves on."""
    rig.policy.gate.set()
    kept = rig.create(2 * MIB, pid=1)
    before = fds_open()
    valid = [
        Message(Type.ALLOCATE, argument=2 * MIB, gpu=rig.gpu.uuid_bytes),
        Message(Type.FREE, records=(Record(kept[0].id, 0, 0),) * 3),
        Message(Type.WAIT, argument=2 * MIB, gpu=rig.gpu.uuid_bytes),
        Message(Type.HELLO, argument=3),
    ]
    garbage = st.one_of(
        st.binary(max_size=400),
        st.builds(
            lambda message, place, value: damaged(wire.pack(message), place, value),
            st.sampled_from(valid),
            st.integers(0, 400),
            st.integers(1, 255),
        ),
        st.just(b"x" * (wire.PACKET_MAX + 5)),
    )

    with listening(rig) as path:

        @settings(max_examples=250, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(st.lists(garbage, min_size=1, max_size=3), st.integers(0, 2), st.booleans())
        def fuzz(contents: list[bytes], fd_count: int, listen: bool) -> None:
            with connect(path) as peer:
                for content in contents:
                    try:
                        socket.send_fds(peer, [content], [0] * fd_count)
                    except (BrokenPipeError, ConnectionResetError):
                        break
                if listen:
                    try:
                        came = packets.receive(peer)
                    except ConnectionResetError:
                        return
                    if came is not None:
                        assert came[0].answer
                        packets.close_all(came[1])

        fuzz()
        assert ask(path, Message(Type.HELLO, argument=9))[0][0].status is Status.OK
        # Damage may still have asked for memory in a way that makes sense; but never taken ours.
        for extent in rig.broker.extents(NAME):
            if extent is not kept[0]:
                rig.broker.drop([extent])
        for silent in [connect(path) for _ in range(5)]:
            silent.close()
    eventually(lambda: fds_open() == before, f"no descriptor left over: {fds_open()}, {before}")


def damaged(packet: bytes, place: int, value: int) -> bytes:
    changed = bytearray(packet)
    changed[place % len(packet)] ^= value
    return bytes(changed)


def doors_come_and_go(rig: Rig) -> None:
    other = WorkloadName("other")
    with listening(rig) as one, listening(rig, other) as two:
        answers, fds = allocate(one, rig.gpu, 2 * MIB)
        packets.close_all(fds)
        refused, _ = ask(two, Message(Type.FREE, records=tuple(records(answers))))
        assert refused[0].status is Status.BAD_REQUEST, "a socket accepts its own workload's extents only"
        silent = connect(one)
        rig.broker.listen(NAME, one, uid=os.geteuid(), gid=os.getegid())
        with suppress(ConnectionResetError):  # when it wasn't even accepted
            assert silent.recv(10) == b"", "replacing a socket hangs up on its connections"
        silent.close()
        assert ask(one, Message(Type.HELLO, argument=1))[0][0].status is Status.OK
        if os.geteuid() == 0:
            rig.broker.listen(NAME, one, uid=12345, gid=54321)
            assert (one.stat().st_uid, one.stat().st_gid) == (12345, 54321)
    rig.broker.stop_listening(other)
    nowhere = rig.directory / "nowhere" / "sock"
    expect(KybernateError, lambda: rig.broker.listen(other, nowhere, uid=0, gid=0))


# -- residual ----------------------------------------------------------------------------------------------------------


def residual_goes_and_comes(rig: Rig) -> None:
    """Several processes at once, with one among them that holds no CUDA state."""
    children = [child("plain"), child("plain")]
    idle = subprocess.Popen(["sleep", "60"])
    pids = [*(HostPid(process.pid) for process in children), HostPid(idle.pid)]
    mine = pids[:2]
    try:
        assert residual.state(pids[2]) is ResidualState.ABSENT
        assert [residual.state(pid) for pid in mine] == [ResidualState.RUNNING] * 2
        assert residual.restore_thread(mine[0]) > 0
        for _ in range(2):
            residual.lock_all(pids, 10)
            assert [residual.state(pid) for pid in mine] == [ResidualState.LOCKED] * 2
            residual.checkpoint_all(pids)
            assert [residual.state(pid) for pid in mine] == [ResidualState.CHECKPOINTED] * 2
            residual.restore_all(pids)
            assert [residual.state(pid) for pid in mine] == [ResidualState.LOCKED] * 2
            residual.unlock_all(pids)
            assert [residual.state(pid) for pid in mine] == [ResidualState.RUNNING] * 2
            assert all(answer(process) == "4660" for process in children), "its memory is as it was"
        residual.unlock_all(pids)  # nothing to do is fine
    finally:
        end(*children, idle)


def residual_refusal_lets_all_run_on(rig: Rig) -> None:
    children = [child("plain"), child("managed")]
    pids = [HostPid(process.pid) for process in children]
    try:
        residual.lock_all(pids, 10)
        error = expect(Unsupported, lambda: residual.checkpoint_all(pids))
        assert str(pids[1]) in str(error)
        assert "managed" in str(error)
        assert [residual.state(pid) for pid in pids] == [ResidualState.RUNNING] * 2
        assert all(answer(process) == "4660" for process in children)
    finally:
        end(*children)


def residual_of_the_dead(rig: Rig) -> None:
    one, other = child("plain"), child("plain")
    pids = [HostPid(process.pid) for process in (one, other)]
    try:
        residual.lock_all(pids, 10)
        one.send_signal(signal.SIGKILL)
        one.wait()
        eventually(lambda: residual.state(pids[0]) is ResidualState.ABSENT, "the dead hold no CUDA state")
        residual.checkpoint_all(pids)  # what is gone is skipped; whose death it is, the caller knows
        assert residual.state(pids[1]) is ResidualState.CHECKPOINTED
        residual.restore_all(pids)
        residual.unlock_all(pids)
        assert answer(other) == "4660"
    finally:
        end(one, other)


def locked_by_somebody_else_is_busy(rig: Rig) -> None:
    """A process that never comes to rest: Busy in time, and the other one isn't left locked."""
    children = [child("plain"), child("spin")]
    pids = [HostPid(process.pid) for process in children]
    try:
        error = expect(Busy, lambda: residual.lock_all(pids, 0.5))
        assert str(pids[1]) in str(error)
        assert residual.state(pids[0]) is ResidualState.RUNNING
        assert answer(children[0]) == "4660"
    finally:
        end(*children)


CHILD = """
import sys
import numpy as np
from kybernate.cuda.driver import call, open_gpus
from kybernate.cuda.planning import NO_SLOT
gpu = open_gpus()[0]
with gpu.current():
    kind = sys.argv[1]
    memory = int(call("cuMemAllocManaged", 4096, 1) if kind == "managed" else call("cuMemAlloc", 4096))
    value = np.array([4660], dtype=np.uint32)
    call("cuMemcpyHtoD", memory, value.ctypes.data, 4)
    if kind == "spin":
        import threading, pathlib
        from kybernate.cuda.kernels import Kernels
        kernels = Kernels(gpu, cache=pathlib.Path(sys.argv[2]))
        flag = int(call("cuMemAlloc", 4096))
        call("cuMemsetD8", flag, 0, 4096)
        stream = call("cuStreamCreate", 1)
        kernels.launch("spin", grid=1, block=1, stream=stream, arguments=(np.uint64(flag),))
    print("ready", flush=True)
    for line in sys.stdin:
        value[0] = 0
        call("cuMemcpyDtoH", value.ctypes.data, memory, 4)
        print(value[0], flush=True)
"""


def child(kind: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, kind, sys.argv[2]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def answer(process: subprocess.Popen[str]) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def end(*processes: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.communicate()


# -- the rest ----------------------------------------------------------------------------------------------------------


def fds_open() -> list[str]:
    """What this process's descriptors are; hypothesis keeps a file of its own open."""
    found = []
    for fd in Path("/proc/self/fd").iterdir():
        try:
            found.append(os.readlink(fd))  # noqa: PTH115 - sockets and memory aren't paths
        except OSError:
            continue
    return sorted(found)


def expect(kind: type[Exception], action: Callable[[], object]) -> Exception:
    try:
        action()
    except kind as e:
        return e
    raise AssertionError(f"no {kind.__name__}")


def main() -> None:
    name, directory = sys.argv[1], Path(sys.argv[2])
    rig = Rig(directory, gpus=open_gpus())
    globals()[name](rig)
    rig.close()
    with rig.gpu.current():
        call("cuCtxSynchronize")  # and the context is still whole


if __name__ == "__main__":
    main()
