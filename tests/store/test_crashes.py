"""Nothing committed is lost, nothing half-done is seen: kill -9 at any moment, power cuts, full disks.

A power cut is real as far as software can make it: the file system (ext4, XFS) is shut down under the writer by the ioctl
its own developers test recovery with: from that moment nothing reaches the disk, the journal's buffers included. Then it is
mounted again from what is on the disk.
"""

from __future__ import annotations

import fcntl
import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.store import worker
from tests.store.rig import PLAIN, OpenTier, load, noise, packs_of, save

from kybernate.model.errors import KybernateError, NoRoom
from kybernate.model.types import CHUNK_BYTES, MIB
from kybernate.store import Space, collect, verify
from kybernate.store.local import LocalMedium

ROUNDS = int(os.environ.get("KYBERNATE_CRASH_ROUNDS", "4"))
_SHUTDOWN = 0x8004587D
"""FS_IOC_SHUTDOWN, the same for ext4 and XFS."""
_WITHOUT_FLUSH = struct.pack("I", 2)


@dataclass
class Facts:
    """What workers have said over all rounds."""

    committed: set[str] = field(default_factory=set)
    unsure: set[str] = field(default_factory=set)
    """Begun or being deleted when the end came."""
    gone: set[str] = field(default_factory=set)
    lines: int = 0

    def hear(self, text: str) -> None:
        for line in text.splitlines():
            self.lines += 1
            verb, _, name = line.partition(" ")
            if verb == "begin":
                self.unsure.add(name)
            elif verb == "commit":
                self.unsure.discard(name)
                self.committed.add(name)
            elif verb == "deleting":
                self.committed.discard(name)
                self.unsure.add(name)
            elif verb == "deleted":
                self.unsure.discard(name)
                self.gone.add(name)

    def compare(self, space: Space) -> None:
        """Everything that was said to be there is there, whole; nothing else but what was under way."""
        there = {str(row.name) for row in space.snapshots()}
        assert self.committed <= there, "a committed snapshot is lost"
        assert there <= self.committed | self.unsure
        assert not there & self.gone
        report = verify(space)
        assert report.problems == ()
        assert all(worker.matches(space, name) for name in there)
        self.committed, self.unsure = there, set()


def run_until(
    root: Path, catalog: Path, seed: str, seconds: float, end: Callable[[subprocess.Popen[bytes]], None]
) -> str:
    """Start a worker, let it work for a while after its first commit, end it; returns what it said."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.store.worker", str(root), str(catalog), seed],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        first = process.stdout.readline()
        assert first == b"ready\n", process.stderr.read().decode()
        deadline = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)  # the moment is the point
        end(process)
    finally:
        process.kill()
        said = process.stdout.read().decode()
        process.wait()
        process.stdout.close()
        process.stderr.close()
    return said


def _cut_power(place: Path) -> None:
    fd = os.open(place, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, _SHUTDOWN, _WITHOUT_FLUSH)
    finally:
        os.close(fd)


@pytest.mark.timeout(300)
def test_kill_9_at_any_moment(open_tier: OpenTier, tmp_path: Path) -> None:
    facts = Facts()
    chance = random.Random(1)
    for number in range(ROUNDS):
        said = run_until(
            tmp_path / "tier",
            tmp_path / "catalog.db",
            f"{number}",
            chance.uniform(0.05, 2.0),
            lambda p: p.send_signal(signal.SIGKILL),
        )
        facts.hear(said)
        tier = open_tier()
        space = tier.space(PLAIN)
        assert space.last_changes.problems == []
        facts.compare(space)
        collect(space)
        facts.compare(space)
        assert list((tmp_path / "tier").glob("*/*/.partial-*")) == []
        tier.close()
        tier.catalog.close()
    assert facts.lines > 3 * ROUNDS


@pytest.mark.root
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_power_cuts(open_tier: OpenTier, small_disk: Callable[..., Path], kind: str) -> None:
    place = small_disk(512 * MIB, kind)
    facts = Facts()
    chance = random.Random(2)

    def cut(process: subprocess.Popen[bytes]) -> None:
        _cut_power(place)
        process.kill()
        process.wait()

    for number in range(ROUNDS):
        # The catalog is cut off as well.
        said = run_until(place / "tier", place / "catalog.db", f"{number}", chance.uniform(0.05, 2.0), cut)
        place = small_disk(like=place)
        facts.hear(said)
        tier = open_tier(place / "tier", catalog=place / "catalog.db")
        space = tier.space(PLAIN)
        assert space.last_changes.problems == []
        facts.compare(space)
        collect(space)
        facts.compare(space)
        tier.close()
        tier.catalog.close()
    assert facts.lines > ROUNDS


@pytest.mark.root
def test_a_full_disk_changes_nothing(open_tier: OpenTier, small_disk: Callable[..., Path], tmp_path: Path) -> None:
    place = small_disk(64 * MIB)
    tier = open_tier(place / "tier")
    space = tier.space(PLAIN)
    save(space, "fits", [noise(k) for k in range(10)], f=noise(1, 1000))
    before = sorted(path.name for path in packs_of(tier))
    with pytest.raises(NoRoom, match="disk is full"):
        save(space, "too-much", [noise(100 + k) for k in range(30)])
    assert [row.name for row in space.snapshots()] == ["fits"]
    assert sorted(path.name for path in packs_of(tier)) == before, "what was written for nothing is gone"
    assert list(place.glob("tier/*/*/.partial-*")) == []
    assert verify(space).problems == ()
    assert load(space, "fits") == [noise(k) for k in range(10)]
    space.delete("fits")
    collect(space)
    save(space, "later", [noise(100 + k) for k in range(12)])
    assert load(space, "later") == [noise(100 + k) for k in range(12)]


@pytest.mark.root
def test_a_disk_so_full_that_no_manifest_fits(open_tier: OpenTier, small_disk: Callable[..., Path]) -> None:
    place = small_disk(64 * MIB)
    tier = open_tier(place / "tier")
    space = tier.space(PLAIN)
    save(space, "there", [noise(1)])
    _fill_up(place / "filler")
    with pytest.raises(NoRoom, match="disk is full"):
        save(space, "new", [noise(1)], small=b"x" * 10)
    assert [row.name for row in space.snapshots()] == ["there"]
    space.delete("there")
    collect(space)
    assert packs_of(tier) == [], "room is made on a full disk too"


def _fill_up(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for piece in (1 << 20, 4096, 1):
            try:
                while True:
                    file.write(bytes(piece))
            except OSError:
                continue


@pytest.mark.root
def test_a_disk_that_fails_to_write_is_told(open_tier: OpenTier, small_disk: Callable[..., Path]) -> None:
    place = small_disk(64 * MIB)
    tier = open_tier(place / "tier")
    space = tier.space(PLAIN)
    save(space, "one", [noise(1)])
    _cut_power(place)
    with pytest.raises(Exception, match=r"can't .*: Input/output error"):
        save(space, "two", [noise(2)])
    assert [row.name for row in space.snapshots()] == ["one"]


def test_what_a_dead_writer_left_is_removed(open_tier: OpenTier, tmp_path: Path) -> None:
    tier = open_tier()
    save(tier.space(PLAIN), "one", [noise(1)])
    tier.close()
    partial = tmp_path / "tier" / "default" / "packs" / ".partial-0123"
    partial.write_bytes(b"x" * CHUNK_BYTES)
    assert isinstance(tier.medium, LocalMedium)
    open_tier()
    assert not partial.exists()


@pytest.mark.root
def test_a_catalog_on_a_full_disk_costs_no_snapshot(open_tier: OpenTier, small_disk: Callable[..., Path]) -> None:
    place = small_disk(64 * MIB)
    tier = open_tier(catalog=place / "catalog.db")
    space = tier.space(PLAIN)
    save(space, "one", [noise(1)])
    _fill_up(place / "filler")
    try:
        for number in range(200):  # until the catalog needs a page more
            save(space, f"more-{number}", [noise(1)], **{f"f{k}": noise(1000 * number + k, 10) for k in range(30)})
    except KybernateError as e:
        assert "can't write the catalog" in e.message  # noqa: PT017
    tier.close()
    tier.catalog.close()
    (place / "filler").unlink()
    again = open_tier(catalog=place / "catalog.db").space(PLAIN)
    assert verify(again).problems == ()
    assert load(again, "one") == [noise(1)]
