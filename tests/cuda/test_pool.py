"""The pool's file and its filling, without pinning (no GPU given). Slot allocation itself: test_bookkeeping.py."""

from __future__ import annotations

import ctypes
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kybernate.cuda.pool import PinnedPool
from kybernate.cuda.pool_directory import prepare_pool_directory, release_pool_directory
from kybernate.model.errors import NoRoom
from kybernate.model.types import CHUNK_BYTES, MIB

SEGMENT = 4 * MIB


@pytest.fixture
def path() -> Iterator[Path]:
    file = Path("/dev/shm") / f"kybernate-test-{uuid.uuid4().hex}"
    yield file
    file.unlink(missing_ok=True)


def make(path: Path, size: int = 16 * MIB, **more: int) -> PinnedPool:
    return PinnedPool(path=path, size_bytes=size, gpus=[], segment_bytes=SEGMENT, **more)


def write(pool: PinnedPool, slot: int, content: bytes) -> None:
    ctypes.memmove(pool.address(slot), content, len(content))


def read(pool: PinnedPool, slot: int, length: int) -> bytes:
    return ctypes.string_at(pool.address(slot), length)


def test_nothing_is_free_before_it_is_filled(path: Path) -> None:
    pool = make(path)
    assert pool.size_bytes == 16 * MIB
    assert (pool.ready_bytes, pool.free_slots) == (0, 0)
    with pytest.raises(NoRoom, match=f"{CHUNK_BYTES} bytes needed, 0 free of {16 * MIB}"):
        pool.allocate(1)
    pool.start()
    pool.wait_ready(10)
    assert pool.ready_bytes == pool.size_bytes
    assert pool.free_slots == 8
    assert path.stat().st_blocks * 512 >= 16 * MIB
    pool.close()


def test_no_room_says_the_numbers_and_takes_nothing(path: Path) -> None:
    pool = make(path)
    pool.start()
    pool.wait_ready(10)
    taken = pool.allocate(3)
    with pytest.raises(NoRoom) as error:
        pool.allocate(6)
    for number in (6 * CHUNK_BYTES, 5 * CHUNK_BYTES, 16 * MIB):
        assert str(number) in str(error.value)
    assert pool.free_slots == 5
    pool.free(taken)
    assert len(pool.allocate(8)) == 8
    pool.close()


def test_content_and_claims_outlive_the_agent(path: Path) -> None:
    first = make(path)
    first.start()
    first.wait_ready(10)
    kept = first.allocate(3)
    for slot in kept:
        write(first, int(slot), b"kept %d" % slot)
    first.close()

    second = make(path)
    second.claim(kept)  # before it is filled: what is in use must never be handed out
    second.start()
    second.wait_ready(10)
    assert second.free_slots == 5
    assert not set(second.allocate(5)) & set(kept)
    for slot in kept:
        assert read(second, int(slot), 6) == b"kept %d" % slot
    second.claim(kept[:1])  # another manifest names it, too
    assert second.shared(kept).tolist() == [True, False, False]
    assert second.free(kept) == 2
    assert second.free(kept[:1]) == 1
    second.close()


def test_a_view_is_the_slot_itself(path: Path) -> None:
    pool = make(path)
    view = pool.view(3)
    assert len(view) == CHUNK_BYTES
    view[:4] = b"seen"
    assert read(pool, 3, 4) == b"seen"
    pool.close()


def test_a_larger_file_is_never_cut(path: Path) -> None:
    first = make(path, 16 * MIB)
    first.start()
    first.wait_ready(10)
    write(first, 7, b"end")
    first.close()
    second = make(path, 8 * MIB)
    assert second.size_bytes == 16 * MIB
    assert read(second, 7, 3) == b"end"
    second.close()


def test_memory_left_alone_makes_the_pool_smaller_not_dead(path: Path) -> None:
    everything = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    pool = make(path, spare_bytes=everything)
    pool.start()
    with pytest.raises(NoRoom, match="left out"):
        pool.wait_ready(10)
    assert pool.size_bytes == 0
    assert len(pool.problems) == 4
    pool.close()


def test_a_populated_pool_needs_no_memory(path: Path) -> None:
    first = make(path)
    first.start()
    first.wait_ready(10)
    first.close()
    everything = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    second = make(path, spare_bytes=everything)
    second.start()
    second.wait_ready(10)
    assert second.problems == []
    second.close()


def test_closing_while_filling(path: Path) -> None:
    pool = make(path, 256 * MIB)
    pool.start()
    pool.close()
    pool.close()
    assert path.exists()


@pytest.mark.parametrize("size", [0, CHUNK_BYTES - 1])
def test_sizes_that_make_no_sense(path: Path, size: int) -> None:
    with pytest.raises(ValueError, match="pool"):
        make(path, size)


def test_a_bug_in_the_caller_is_seen(path: Path) -> None:
    pool = make(path)
    pool.start()
    pool.wait_ready(10)
    with pytest.raises(ValueError, match="isn't taken"):
        pool.free(np.array([0]))
    with pytest.raises(ValueError, match="being filled"):
        pool.start()
    pool.close()


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "pool"
    yield directory
    if directory.exists():
        release_pool_directory(directory)


@pytest.mark.root
def test_the_mount_is_kept_and_enlarged(mount: Path) -> None:
    assert prepare_pool_directory(mount, size_bytes=16 * MIB) == mount
    assert mount.is_mount()
    (mount / "pool").write_bytes(b"content")
    assert prepare_pool_directory(mount, size_bytes=64 * MIB) == mount
    assert (mount / "pool").read_bytes() == b"content"
    here = os.statvfs(mount)
    assert here.f_blocks * here.f_frsize >= 64 * MIB
    assert mount.stat().st_mode & 0o777 == 0o700
    assert subprocess.run(["findmnt", "-no", "FSTYPE", mount], capture_output=True, text=True, check=False).stdout in (
        "tmpfs\n",
        "",
    )


@pytest.mark.root
def test_a_full_tmpfs_makes_the_pool_smaller(mount: Path) -> None:
    prepare_pool_directory(mount, size_bytes=8 * MIB)
    pool = make(mount / "pool", 16 * MIB)
    pool.start()
    pool.wait_ready(10)
    assert 0 < pool.size_bytes < 16 * MIB
    assert pool.ready_bytes == pool.size_bytes
    assert any("can't be populated" in problem for problem in pool.problems)
    assert len(pool.allocate(pool.free_slots)) * CHUNK_BYTES == pool.size_bytes
    pool.close()
