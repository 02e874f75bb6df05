"""Any order of operations: a state machine stores, copies, deletes, collects, restarts and loses catalogs, and compares with a
model after each step. `KYBERNATE_STRESS_S` lets it run for as long as that many seconds."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from tests.store.rig import PLAIN, SEALED, Slots, empty_slots, noise

from kybernate.model.types import CHUNK_BYTES, MIB
from kybernate.store import (
    Catalog,
    Keys,
    LocalMedium,
    ObjectMedium,
    SnapshotReader,
    Space,
    Tier,
    collect,
    copy,
    open_reader,
    open_writer,
    verify,
)

SECONDS = float(os.environ.get("KYBERNATE_STRESS_S", "0"))
CONTENTS = [noise(k) for k in range(5)] + [bytes(CHUNK_BYTES), b"shrinks " * (CHUNK_BYTES // 8)]
Content = tuple[tuple[int, ...], bytes]
"""Numbers of chunks, and a file."""


class Lifetimes(RuleBasedStateMachine):
    """Two tiers, a directory and a "bucket" that is a directory too."""

    names = Bundle("names")

    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp(prefix="kybernate-test-"))
        (self.base / "far").mkdir()
        self.model: list[dict[str, Content]] = [{}, {}]
        self.tiers: list[Tier] = []
        self.readers: list[tuple[SnapshotReader, Content]] = []
        self.number = 0
        self.keys: Keys = PLAIN

    @initialize(keys=st.sampled_from([PLAIN, SEALED]))
    def begin(self, keys: Keys) -> None:
        self.keys = keys
        self._open()

    def _open(self) -> None:
        catalog = Catalog(self.base / "catalog.db")
        self.tiers = [
            Tier(LocalMedium(self.base / "near", pack_bytes=8 * MIB, threads=2), catalog),
            Tier(ObjectMedium(f"file://{self.base}/far", pack_bytes=8 * MIB, threads=2), catalog),
        ]
        for tier in self.tiers:
            tier.open()
            assert tier.space(self.keys).last_changes.problems == []
            assert tier.space(self.keys).last_changes.snapshots_gone == []

    def _close(self) -> None:
        for reader, _ in self.readers:
            reader.close()
        self.readers = []
        for tier in self.tiers:
            tier.close()
        self.tiers[0].catalog.close()

    def space(self, where: int) -> Space:
        return self.tiers[where].space(self.keys)

    @rule(
        target=names,
        where=st.integers(0, 1),
        chunks=st.lists(st.integers(0, len(CONTENTS) - 1), max_size=6),
        size=st.integers(0, 70_000),
    )
    def store(self, where: int, chunks: list[int], size: int) -> str:
        self.number += 1
        name = f"s{self.number}"
        slots = Slots([CONTENTS[k] for k in chunks])
        with open_writer(self.space(where), name) as writer:
            writer.add_extent(slots.views)
            writer.add_bytes("f", noise(size, size))
            writer.commit()
        self.model[where][name] = (tuple(chunks), noise(size, size))
        return name

    @rule(where=st.integers(0, 1), chunks=st.lists(st.integers(0, len(CONTENTS) - 1), min_size=1, max_size=6))
    def give_up(self, where: int, chunks: list[int]) -> None:
        slots = Slots([CONTENTS[k] for k in chunks])
        with open_writer(self.space(where), "given-up") as writer:
            writer.add_extent(slots.views)

    @rule(name=names, where=st.integers(0, 1))
    def copy(self, name: str, where: int) -> None:
        if name in self.model[where]:
            copy(self.space(where), self.space(1 - where), name)
            self.model[1 - where][name] = self.model[where][name]

    @rule(target=names, name=consumes(names))
    def delete(self, name: str) -> object:
        for where in (0, 1):
            if self.model[where].pop(name, None) is not None:
                self.space(where).delete(name)
        return multiple()

    @rule(where=st.integers(0, 1), below=st.sampled_from([0.0, 0.5, 0.99]))
    def collect(self, where: int, below: float) -> None:
        collect(self.space(where), compact_below=below)
        if below == 0.99 and not self.readers:
            needed = {k for chunks, _ in self.model[where].values() for k in chunks} - {5}
            used = self.tiers[where].usage().used
            assert used <= (len(needed) + 1) * (CHUNK_BYTES + 16_384) + len(self.model[where]) * 90_000

    @rule()
    def restart(self) -> None:
        self._close()
        self._open()

    @rule()
    def lose_the_catalog(self) -> None:
        self._close()
        for path in self.base.glob("catalog.db*"):
            path.unlink()
        self._open()

    @rule(name=names, where=st.integers(0, 1))
    def hold(self, name: str, where: int) -> None:
        """A reader that stays open while others delete and collect."""
        if name in self.model[where] and len(self.readers) < 2:
            reader = open_reader(self.space(where), name)
            reader.read_bytes("f")
            _compare(reader, self.model[where][name])
            self.readers.append((reader, self.model[where][name]))

    @rule()
    def let_go(self) -> None:
        for reader, content in self.readers:
            _compare(reader, content)
            reader.close()
        self.readers = []

    @invariant()
    def all_is_as_it_should_be(self) -> None:
        for where, tier in enumerate(self.tiers):
            space = tier.space(self.keys)
            assert {str(row.name) for row in space.snapshots()} == set(self.model[where])
            for name, content in self.model[where].items():
                with open_reader(space, name) as reader:
                    _compare(reader, content)

    def teardown(self) -> None:
        try:
            if self.tiers:
                for tier in self.tiers:
                    assert verify(tier.space(self.keys)).problems == ()
                self._close()
        finally:
            shutil.rmtree(self.base)


def _compare(reader: SnapshotReader, content: Content) -> None:
    chunks, file = content
    extent = reader.manifest.extents[0]
    slots = empty_slots([CHUNK_BYTES] * extent.count)
    reader.read_part(extent, slots.views)
    assert slots.contents() == [CONTENTS[k] for k in chunks]
    assert reader.read_bytes("f") == file


@pytest.mark.timeout(max(300, SECONDS * 2))
def test_lifetimes() -> None:
    end = time.monotonic() + SECONDS
    chosen = settings(
        max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
    )
    while True:
        run_state_machine_as_test(Lifetimes, settings=chosen)
        if time.monotonic() > end:
            break
