"""Content that goes into the store through a pipe, and out through one: memory, and archives."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tests.store.rig import PLAIN, SEALED, OpenTier, noise, packs_of

from kybernate.model.errors import BadInput, Cancelled, NoRoom
from kybernate.model.types import CHUNK_BYTES, MIB
from kybernate.store import Damaged, Feeds, SnapshotReader, Space, Tier, open_reader, open_writer, verify
from kybernate.store.memory import PAGE_BYTES
from kybernate.store.piping import Piped
from kybernate.store.tenants import Keys


@contextmanager
def given(content: bytes) -> Iterator[int]:
    """A pipe that gives this; who writes into it bears that nobody reads any more."""
    reader, writer = os.pipe()

    def write() -> None:
        view = memoryview(content)
        try:
            while view:
                view = view[os.write(writer, view) :]
        except BrokenPipeError:
            pass
        finally:
            os.close(writer)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield reader
    finally:
        os.close(reader)
        thread.join()


def store(space: Space, name: str, content: bytes, *, pages: bool = True) -> tuple[Piped, int]:
    """What came, and the bytes that were written."""
    with open_writer(space, name) as writer:
        with given(content) as pipe:
            piped = writer.pipes.take(pipe, pages=pages)
        writer.pipes.add("content", piped)
        writer.commit()
        return piped, writer.stored


def load(
    reader: SnapshotReader, zeros: list[tuple[int, int]], *, path: str = "content", most: int | None = None
) -> bytes:
    """What comes out; with `most` the pipe is closed after so many bytes."""
    out, pipe = os.pipe()
    found: list[bytes] = []

    def take() -> None:
        size = 0
        while part := os.read(out, 1 << 16):
            found.append(part)
            size += len(part)
            if most is not None and size >= most:
                break
        os.close(out)

    thread = threading.Thread(target=take)
    thread.start()
    try:
        Feeds(reader).send(path, pipe, zeros=zeros)
    finally:
        os.close(pipe)
        thread.join()
    return b"".join(found)


def stretches(zero: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> list[tuple[int, int]]:
    """Of pages, in bytes."""
    found: list[tuple[int, int]] = []
    for number in np.flatnonzero(zero).tolist():
        if found and sum(found[-1]) == number * PAGE_BYTES:
            found[-1] = (found[-1][0], found[-1][1] + PAGE_BYTES)
        else:
            found.append((number * PAGE_BYTES, PAGE_BYTES))
    return found


def memory(seed: int, mib: int) -> bytes:
    """Runs of noise, of zeros, and single pages of both."""
    source = random.Random(seed)
    parts: list[bytes] = []
    while sum(map(len, parts)) < mib * MIB:
        count = source.choice([1, 1, 2, 30, 700])
        parts.append(bytes(count * PAGE_BYTES) if source.random() < 0.4 else source.randbytes(count * PAGE_BYTES))
    return b"".join(parts)[: mib * MIB]


@pytest.mark.parametrize("keys", [PLAIN, SEALED], ids=["plain", "encrypted"])
@pytest.mark.parametrize("mib", [0, 1, 9, 40])
def test_memory_comes_back_without_its_zeros_being_stored(open_tier: OpenTier, keys: Keys, mib: int) -> None:
    space = open_tier().space(keys)
    content = memory(mib, mib)
    piped, stored = store(space, "one", content)
    zero = np.array(
        [not any(content[at : at + PAGE_BYTES]) for at in range(0, len(content), PAGE_BYTES)], dtype=np.bool_
    )
    assert piped.zero.tolist() == zero.tolist()
    assert piped.size == stored == len(content) - np.count_nonzero(zero) * PAGE_BYTES
    with open_reader(space, "one") as reader:
        assert load(reader, stretches(piped.zero)) == content
        assert len(load(reader, [])) == piped.size, "and again, without them"
    assert verify(space).problems == ()


def test_little_memory_is_read_as_it_was_cut(open_tier: OpenTier) -> None:
    """Less than one chunk of 2 MiB, and cut all the same."""
    space = open_tier().space(PLAIN)
    pieces = []
    for pages in (1, 15, 16, 17, 40, 100, 200, 300, 511, 512, 513):
        content = noise(pages, pages * PAGE_BYTES)
        piped, _ = store(space, f"of-{pages}", content)
        pieces.append(len(piped.lengths))
        with open_reader(space, f"of-{pages}") as reader:
            assert load(reader, []) == content, pages
    assert max(pieces[:10]) > 1
    assert verify(space).problems == ()


@pytest.mark.parametrize("keys", [PLAIN, SEALED], ids=["plain", "encrypted"])
def test_what_is_there_already_is_not_written_again(open_tier: OpenTier, keys: Keys) -> None:
    space = open_tier().space(keys)
    before = noise(1, 16 * MIB)
    assert store(space, "one", before)[1] == len(before)
    assert store(space, "two", before)[1] == 0
    piped, stored = store(space, "three", noise(2, PAGE_BYTES) + bytes(3 * PAGE_BYTES) + before)
    assert 0 < stored < len(before) // 5, "some pages more move the cuts near them only"
    assert piped.size == len(before) + PAGE_BYTES


def test_memory_from_a_pipe_is_cut_as_from_a_file(open_tier: OpenTier, tmp_path: Path) -> None:
    """So a snapshot shares what one of an older version has stored."""
    space = open_tier().space(PLAIN)
    (tmp_path / "content").write_bytes(content := noise(1, 24 * MIB))
    with open_writer(space, "file") as writer:
        writer.add_file("content", tmp_path / "content", by_content=True)
        old = writer.commit()
    assert store(space, "pipe", content)[1] == 0
    with open_reader(space, "pipe") as reader:
        assert reader.manifest.file("content").cuts == old.file("content").cuts


def test_the_same_again_and_again_is_stored_once(open_tier: OpenTier) -> None:
    content = noise(1, 256 << 10) * 64
    assert store(open_tier().space(PLAIN), "one", content)[1] < 4 * MIB


def test_what_shrinks_is_compressed(open_tier: OpenTier) -> None:
    space = open_tier().space(PLAIN)
    content = b"".join((b"%7d" % number) * 512 + bytes(512) for number in range(1, 4096))
    assert store(space, "one", content)[1] < len(content) // 2
    with open_reader(space, "one") as reader:
        assert load(reader, []) == content


@pytest.mark.parametrize("size", [0, 5, CHUNK_BYTES, 5 * MIB + 7, 20 * MIB])
def test_an_archive(open_tier: OpenTier, size: int) -> None:
    """Not pages: of any length, cut every 2 MiB; chunks of zeros are no bytes."""
    space = open_tier().space(PLAIN)
    content = noise(1, size // 2) + bytes(size - size // 2)
    piped, stored = store(space, "one", content, pages=False)
    assert piped.size == size
    assert len(piped.zero) == 0
    assert stored <= size // 2 + CHUNK_BYTES
    with open_reader(space, "one") as reader:
        assert load(reader, []) == content
        assert reader.read_bytes("content") == content


def test_several_pipes_and_other_content_at_once(open_tier: OpenTier) -> None:
    space = open_tier().space(PLAIN)
    contents = {f"content-{number}": memory(number, 12) for number in range(4)}
    found: dict[str, Piped] = {}
    with open_writer(space, "one") as writer:

        def add(name: str) -> None:
            with given(contents[name]) as pipe:
                found[name] = writer.pipes.take(pipe, pages=True)

        threads = [threading.Thread(target=add, args=(name,)) for name in contents]
        for thread in threads:
            thread.start()
        for number in range(200):
            writer.add_bytes(f"small-{number}", b"%d" % number)
        for thread in threads:
            thread.join()
        for name, piped in found.items():
            writer.pipes.add(name, piped)
        writer.commit()
    with open_reader(space, "one") as reader:
        for number in range(200):
            assert reader.read_bytes(f"small-{number}") == b"%d" % number
        for name, content in contents.items():
            assert load(reader, stretches(found[name].zero), path=name) == content


def test_half_a_page(open_tier: OpenTier) -> None:
    with pytest.raises(BadInput, match="middle"):
        store(open_tier().space(PLAIN), "one", noise(1, PAGE_BYTES + 5))


def test_a_full_disk_stops_it(open_tier: OpenTier) -> None:
    """And who writes into the pipe hears of it; nothing stays."""
    tier = open_tier(budget_bytes=24 * MIB)
    with pytest.raises(NoRoom):
        store(tier.space(PLAIN), "one", noise(1, 64 * MIB))
    assert packs_of(tier) == []
    assert store(tier.space(PLAIN), "two", noise(1, 4 * MIB))[1] == 4 * MIB


def test_a_cancelled_writer_waits_for_nobody(open_tier: OpenTier) -> None:
    reader, pipe = os.pipe()
    try:
        with open_writer(open_tier().space(PLAIN), "one") as writer:
            threading.Timer(0.2, writer.cancel).start()
            began = time.monotonic()
            with pytest.raises(Cancelled):
                writer.pipes.take(reader, pages=True)
            assert time.monotonic() - began < 10
    finally:
        os.close(reader)
        os.close(pipe)


@pytest.mark.parametrize("most", [1, PAGE_BYTES, 3 * MIB, 17 * MIB])
def test_a_reader_that_leaves_early(open_tier: OpenTier, most: int) -> None:
    space = open_tier().space(PLAIN)
    content = noise(1, 48 * MIB)
    store(space, "one", content)
    with open_reader(space, "one") as reader:
        for _ in range(5):  # each gives back all that it held
            found = load(reader, [], most=most)
            assert content.startswith(found)
            assert len(found) >= most
        assert load(reader, []) == content


def _broken(pack: Path) -> None:
    content = bytearray(pack.read_bytes())
    content[len(content) // 2] ^= 0x20
    pack.write_bytes(content)


@pytest.mark.parametrize("harm", [_broken, Path.unlink], ids=["changed", "gone"])
def test_damage_is_found_on_the_way(open_tier: OpenTier, harm: Callable[[Path], None]) -> None:
    tier = open_tier()
    space = tier.space(PLAIN)
    content = noise(1, 48 * MIB)
    store(space, "one", content)
    harm(packs_of(tier)[-1])
    with open_reader(space, "one") as reader, pytest.raises(Damaged):
        load(reader, [])


@pytest.mark.parametrize("keys", [PLAIN, SEALED], ids=["plain", "encrypted"])
def test_through_a_bucket(open_agent: Callable[..., Tier], keys: Keys) -> None:
    """Where packs on their way are kept in memory: what lies in the blocks is copied."""
    space = open_agent().space(keys)
    content = memory(7, 24)
    piped, _ = store(space, "one", content)
    with open_reader(space, "one") as reader:
        assert load(reader, stretches(piped.zero)) == content
