"""Slots, address ranges and runs against plain models, by hypothesis. No GPU, no memory."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kybernate.cuda.planning import NO_SLOT, compare, find_runs
from kybernate.cuda.ranges import RangeAllocator
from kybernate.cuda.slots import SlotMap
from kybernate.model.errors import NoRoom

pytestmark = pytest.mark.unit

SEGMENT, SEGMENTS = 7, 5
COUNT = SEGMENT * SEGMENTS - 2


class SlotMachine(RuleBasedStateMachine):
    """SlotMap against a set and a count of owners."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = SlotMap(count=COUNT, segment_slots=SEGMENT)
        self.enabled: set[int] = set()
        self.owners: Counter[int] = Counter()

    @property
    def taken(self) -> set[int]:
        return set(+self.owners)

    @property
    def free(self) -> set[int]:
        return self.enabled - self.taken

    @rule(segment=st.integers(0, SEGMENTS - 1))
    def enable(self, segment: int) -> None:
        self.slots.enable(segment)
        self.enabled |= set(range(segment * SEGMENT, min((segment + 1) * SEGMENT, COUNT)))

    @rule(count=st.integers(0, COUNT))
    def take(self, count: int) -> None:
        if count > len(self.free):
            with pytest.raises(ValueError, match="slots of"):
                self.slots.take(count)
            return
        got = self.slots.take(count).tolist()
        assert got == sorted(set(got))
        assert len(got) == count
        assert set(got) <= self.free
        assert runs(got) == fewest_runs(self.free, count)
        self.owners.update(got)

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        some = data.draw(st.lists(st.sampled_from(sorted(self.taken)), unique=True))
        assert self.slots.give(np.array(some, dtype=np.int64)) == sum(self.owners[slot] == 1 for slot in some)
        self.owners.subtract(some)

    @rule(some=st.lists(st.integers(-1, COUNT), unique=True, max_size=4))
    def claim(self, some: list[int]) -> None:
        slots = np.array(some, dtype=np.int64)
        if all(0 <= slot < COUNT for slot in some):
            self.slots.claim(slots)
            self.owners.update(some)
        else:
            with pytest.raises(ValueError, match="slot"):
                self.slots.claim(slots)

    @rule(some=st.lists(st.integers(-1, COUNT), unique=True, max_size=4))
    def share(self, some: list[int]) -> None:
        slots = np.array(some, dtype=np.int64)
        if all(slot in self.taken for slot in some):
            self.slots.share(slots)
            self.owners.update(some)
            assert self.slots.shared(slots).all()
        else:
            with pytest.raises(ValueError, match="slot"):
                self.slots.share(slots)

    @precondition(lambda self: self.free)
    @rule()
    def give_what_is_free(self) -> None:
        with pytest.raises(ValueError, match="taken"):
            self.slots.give(np.array([min(self.free)], dtype=np.int64))

    @invariant()
    def counts(self) -> None:
        assert self.slots.free == len(self.free)
        assert self.slots.ready == len(self.enabled)
        assert self.slots.shared(np.arange(COUNT)).tolist() == [self.owners[slot] > 1 for slot in range(COUNT)]


TestSlots = SlotMachine.TestCase


def runs(numbers: list[int]) -> int:
    return sum(1 for i, n in enumerate(numbers) if i == 0 or numbers[i - 1] != n - 1)


def fewest_runs(free: set[int], count: int) -> int:
    """Greedily by length, which is best."""
    lengths: list[int] = []
    for slot in sorted(free):
        if slot - 1 in free:
            lengths[-1] += 1
        else:
            lengths.append(1)
    needed = 0
    for length in sorted(lengths, reverse=True):
        if count <= 0:
            break
        needed, count = needed + 1, count - length
    return needed


def test_a_slot_named_twice_is_refused() -> None:
    slots = SlotMap(count=4, segment_slots=4)
    with pytest.raises(ValueError, match="twice"):
        slots.claim(np.array([1, 1]))


class RangeMachine(RuleBasedStateMachine):
    """RangeAllocator against a list of the pieces that are out."""

    START, SIZE = 1000, 64

    def __init__(self) -> None:
        super().__init__()
        self.ranges = RangeAllocator(start=self.START, size=self.SIZE)
        self.out: list[tuple[int, int]] = []

    @rule(size=st.integers(1, 40))
    def take(self, size: int) -> None:
        used = {unit for start, length in self.out for unit in range(start, start + length)}
        fits = any(
            used.isdisjoint(range(start, start + size))
            for start in range(self.START, self.START + self.SIZE - size + 1)
        )
        if not fits:
            with pytest.raises(NoRoom):
                self.ranges.take(size)
            return
        start = self.ranges.take(size)
        assert self.START <= start <= self.START + self.SIZE - size
        assert used.isdisjoint(range(start, start + size))
        self.out.append((start, size))

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        start, size = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        cut = data.draw(st.integers(0, size))
        for part, length in ((start, cut), (start + cut, size - cut)):
            if length:
                self.ranges.give(part, length)
        with pytest.raises(ValueError, match="free already"):
            self.ranges.give(start, size)

    @invariant()
    def account(self) -> None:
        assert self.ranges.free_bytes == self.SIZE - sum(size for _, size in self.out)


TestRanges = RangeMachine.TestCase


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Extents' chunk counts, a slot for each chunk (some runs, some not), which chunks to copy."""
    sizes = draw(st.lists(st.integers(1, 9), max_size=6))
    count = sum(sizes)
    slots = np.array(draw(st.permutations(range(count))) if draw(st.booleans()) else range(count), dtype=np.int64)
    wanted = np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)), dtype=np.bool_)
    return sizes, slots, wanted


@settings(deadline=None)
@given(layouts(), st.integers(1, 6))
def test_runs_copy_exactly_what_is_wanted(layout: tuple[list[int], np.ndarray, np.ndarray], segment: int) -> None:
    sizes, slots, wanted = layout
    bounds = np.cumsum([0, *sizes])
    pointers = np.array([100_000 * (i + 1) for i in range(len(sizes))], dtype=np.int64)
    found = find_runs(pointers=pointers, bounds=bounds, slots=slots, wanted=wanted, segment_slots=segment, unit=10)
    copied = []
    for extent in range(len(sizes)):
        for run in range(found.first[extent], found.first[extent + 1]):
            first = found.slots[run]
            last = first + found.chunks[run] - 1
            assert first // segment == last // segment, "a copy spans two segments"
            copied += [(found.addresses[run] + 10 * i, first + i) for i in range(found.chunks[run])]
    naive = [
        (pointers[extent] + 10 * i, slots[bounds[extent] + i])
        for extent, size in enumerate(sizes)
        for i in range(size)
        if wanted[bounds[extent] + i]
    ]
    assert copied == naive
    assert found.first[-1] == len(found.chunks)
    # As long as they can be: the next one never continues the one before.
    for run in range(1, len(found.chunks)):
        before = found.addresses[run - 1] + 10 * found.chunks[run - 1], found.slots[run - 1] + found.chunks[run - 1]
        follows = before == (found.addresses[run], found.slots[run])
        assert not follows or found.slots[run] % segment == 0


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 2)] * 4, st.integers(-1, 3)), max_size=30))
def test_every_chunk_is_zero_clean_or_dirty(rows: list[tuple[int, int, int, int, int]]) -> None:
    table = np.array(rows, dtype=np.int64).reshape(-1, 5)
    hashes, old_hashes, old_slots = table[:, :2].astype(np.uint64), table[:, 2:4].astype(np.uint64), table[:, 4]
    found = compare(hashes, old_slots=old_slots, old_hashes=old_hashes)
    for i, (a, b, c, d, slot) in enumerate(rows):
        zero = a == b == 0
        clean = not zero and slot != NO_SLOT and (a, b) == (c, d)
        assert (found.zero[i], found.clean[i], found.dirty[i]) == (zero, clean, not zero and not clean)
