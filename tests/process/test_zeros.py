"""Pages of zeros don't stay in a dump. What they read as after a restore is in features/zeros.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.conftest import Eventually
from tests.process.conftest import Workloads

from kybernate.model.errors import BadInput
from kybernate.process import criu_images, criu_zeros, images
from kybernate.process.dumping import dump

from .dumps import FEATURES, feature, wait_ready

PAGE = criu_images.PAGE_BYTES
MIB = 1 << 20


@pytest.mark.root
def test_zeros_take_no_room(workloads: Workloads, tmp_path: Path, eventually: Eventually) -> None:
    tree = workloads.launch(*feature("zeros"), directory=FEATURES)
    wait_ready(tree, eventually)
    dump(tree, tmp_path / "images")
    record = images.verify(tmp_path / "images")
    stored = sum(path.stat().st_size for path in (tmp_path / "images").glob("pages-*.img"))
    restored = stored + sum(length for stretches in record.zeros.values() for _, length in stretches)
    # Of 95 MiB some 61 are noise, have one byte, or lie where they must stay: over a file, in shared memory.
    assert stored < restored < 75 * MIB


@given(
    content=st.dictionaries(
        st.integers(1, 300), st.lists(st.integers(0, (1 << 64) - 1) | st.binary(max_size=20), min_size=1, max_size=3)
    )
)
def test_messages_come_back(content: dict[int, list[int | bytes]]) -> None:
    assert criu_images.fields(criu_images.message(content)) == content


def image(path: Path, kind: int, *messages: bytes) -> None:
    head = (0x54564319).to_bytes(4, "little") + kind.to_bytes(4, "little")
    path.write_bytes(head + b"".join(len(m).to_bytes(4, "little") + m for m in messages))


def made_up(
    directory: Path, pages: list[bytes], *, flags: int = 0x22, status: int = 0x201, address: int = 0x10000
) -> dict[str, NDArray[np.bool_]]:
    """A dump of one process with one area, and which of its pages are zeros."""
    area = criu_images.message({1: [address], 2: [address + len(pages) * PAGE], 6: [flags], 7: [status]})
    image(directory / "mm-7.img", 0x57492820, criu_images.message({1: [0], 14: [area]}))
    entry = criu_images.message({1: [address], 2: [len(pages)], 4: [4]})
    image(directory / "pagemap-7.img", 0x56084025, criu_images.message({1: [3]}), entry)
    return {"pages-3.img": np.array([page == ZERO for page in pages], dtype=np.bool_)}


ZERO, NOISE = bytes(PAGE), b"\1" * PAGE


def entries(directory: Path) -> list[tuple[int, int]]:
    _, *rest = criu_images.entries(directory / "pagemap-7.img")
    return [(f[1][0], f[2][0]) for f in map(criu_images.fields, rest)]


def test_what_is_left_is_what_was_there(tmp_path: Path) -> None:
    zero = made_up(tmp_path, [ZERO, NOISE, NOISE, ZERO, ZERO, NOISE, ZERO])
    assert criu_zeros.leave_out(tmp_path, zero) == {}
    assert entries(tmp_path) == [(0x10000 + PAGE, 2), (0x10000 + 5 * PAGE, 1)]


@pytest.mark.parametrize(
    ("flags", "status"),
    [(0x02, 0x41), (0x21, 0x101), (0x122, 0x203), (0x40022, 0x201), (0x22, 0x2201)],
    ids=["a file", "shared", "a stack", "huge pages", "an AIO ring"],
)
def test_other_memory_is_left_alone(tmp_path: Path, flags: int, status: int) -> None:
    zero = made_up(tmp_path, [ZERO] * 8, flags=flags, status=status)
    assert criu_zeros.leave_out(tmp_path, zero) == {"pages-3.img": ((0, 8 * PAGE),)}
    assert entries(tmp_path) == [(0x10000, 8)]


def test_few_zeros_are_not_worth_it(tmp_path: Path) -> None:
    zero = made_up(tmp_path, [ZERO] + [NOISE] * 99)
    assert criu_zeros.leave_out(tmp_path, zero) == {"pages-3.img": ((0, PAGE),)}
    assert entries(tmp_path) == [(0x10000, 100)]


def test_a_map_and_pages_that_do_not_agree(tmp_path: Path) -> None:
    made_up(tmp_path, [ZERO] * 8)
    with pytest.raises(BadInput, match="is damaged"):
        criu_zeros.leave_out(tmp_path, {"pages-3.img": np.ones(7, dtype=np.bool_)})
