"""Files of pages cut by their content: whole, in bounds, and alike where two of them are."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.store.rig import PLAIN, SEALED, OpenTier, noise

from kybernate.model.types import CHUNK_BYTES, MIB
from kybernate.store import open_reader, open_writer, verify
from kybernate.store.cutting import LEAST_PAGES, PAGE_BYTES, cuts
from kybernate.store.tenants import Keys


def pages(seed: int, count: int) -> list[bytes]:
    source = random.Random(seed)
    return [source.randbytes(PAGE_BYTES) for _ in range(count)]


def cut(path: Path, content: bytes) -> list[bytes]:
    """The chunks of a file."""
    path.write_bytes(content)
    fd = os.open(path, os.O_RDONLY)
    try:
        lengths = cuts(fd, len(content))
    finally:
        os.close(fd)
    assert sum(lengths) == len(content)
    chunks = []
    for length in lengths:
        chunks.append(content[:length])
        content = content[length:]
    return chunks


@settings(deadline=None, max_examples=40)
@given(
    # Kinds of pages in runs: of noise, of zeros, one and the same again and again.
    runs=st.lists(st.tuples(st.sampled_from(["noise", "zeros", "same"]), st.integers(1, 700)), max_size=5),
    rest=st.integers(0, PAGE_BYTES - 1),
    seed=st.integers(0, 1 << 16),
)
def test_chunks_are_in_bounds_and_pages_whole(
    tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[str, int]], rest: int, seed: int
) -> None:
    same = pages(seed + 1, 1)[0]
    content = b"".join(
        {
            "noise": lambda n: random.Random(seed).randbytes(n * PAGE_BYTES),
            "zeros": lambda n: bytes(n * PAGE_BYTES),
        }.get(kind, lambda n: same * n)(count)
        for kind, count in runs
    )
    content += bytes(rest)
    chunks = cut(tmp_path_factory.getbasetemp() / "pages", content)
    assert b"".join(chunks) == content
    assert all(len(chunk) <= CHUNK_BYTES for chunk in chunks)
    assert all(len(chunk) % PAGE_BYTES == 0 and len(chunk) >= LEAST_PAGES * PAGE_BYTES for chunk in chunks[:-1])


def test_nothing_is_cut_into_nothing(tmp_path: Path) -> None:
    assert cut(tmp_path / "pages", b"") == []


def test_zeros_are_cut_as_large_as_may_be(tmp_path: Path) -> None:
    assert [len(chunk) for chunk in cut(tmp_path / "pages", bytes(5 * MIB))] == [2 * MIB, 2 * MIB, MIB]


@pytest.mark.parametrize("change", ["one more", "one less", "another"])
def test_a_page_that_comes_or_goes_changes_the_chunks_near_it_only(tmp_path: Path, change: str) -> None:
    before = pages(1, 8192)
    after = list(before)
    if change == "one more":
        after.insert(100, pages(2, 1)[0])
    elif change == "one less":
        del after[100]
    else:
        after[100] = pages(2, 1)[0]
    known = set(cut(tmp_path / "pages", b"".join(before)))
    new = [chunk for chunk in cut(tmp_path / "pages", b"".join(after)) if chunk not in known]
    assert 1 <= len(new) <= 4
    assert sum(map(len, new)) < sum(map(len, before)) // 10


@pytest.mark.parametrize("keys", [PLAIN, SEALED], ids=["plain", "encrypted"])
def test_a_snapshot_of_pages_shares_what_it_can_and_comes_back(open_tier: OpenTier, tmp_path: Path, keys: Keys) -> None:
    space = open_tier().space(keys)
    before = noise(1, 16 * MIB + 5)
    after = noise(2, PAGE_BYTES) + before
    written = {}
    for name, content in (("first", before), ("second", after)):
        (tmp_path / "pages-1.img").write_bytes(content)
        with open_writer(space, name) as writer:
            writer.add_file("pages-1.img", tmp_path / "pages-1.img", by_content=True)
            writer.commit()
            written[name] = writer.stored
    assert written["first"] == len(before)
    assert written["second"] < len(before) // 5
    for name, content in (("first", before), ("second", after)):
        with open_reader(space, name) as reader:
            reader.extract(tmp_path / name)
            assert reader.read_bytes("pages-1.img") == content
        assert (tmp_path / name / "pages-1.img").read_bytes() == content
    assert verify(space).problems == ()


def test_small_files_are_not_cut(open_tier: OpenTier, tmp_path: Path) -> None:
    space = open_tier().space(PLAIN)
    (tmp_path / "small").write_bytes(noise(1, CHUNK_BYTES))
    with open_writer(space, "small") as writer:
        writer.add_file("small", tmp_path / "small", by_content=True)
        manifest = writer.commit()
    assert (manifest.files[0].cuts, manifest.files[0].count) == ((), 1)
