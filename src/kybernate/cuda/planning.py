"""What an eviction has to copy: pure arithmetic over hashes and slots, in numpy.

20,480 chunks (40 GiB) take about a millisecond. Limits: knows arrays only, neither GPU nor pool.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
"""Shape (chunks, 2)."""
Slots = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

NO_SLOT = -1
"""A zero chunk's slot."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Every chunk is exactly one of the three."""

    zero: Mask
    """All zeros: neither copied nor kept."""
    clean: Mask
    """The host copy is right already."""
    dirty: Mask


def compare(hashes: Hashes, *, old_slots: Slots, old_hashes: Hashes) -> Difference:
    """Chunks as they are against their host copy. A slot whose hash is (0, 0) holds unknown content and is never clean."""
    zero = (hashes == 0).all(axis=1)
    clean = (old_slots >= 0) & (hashes == old_hashes).all(axis=1) & ~zero
    return Difference(zero=zero, clean=clean, dirty=~zero & ~clean)


@dataclass(frozen=True, slots=True)
class Runs:
    """Copies to do: parallel arrays. Chunks of one run follow each other on both sides."""

    addresses: npt.NDArray[np.int64]
    """Device addresses."""
    slots: Slots
    """First slot of each."""
    chunks: npt.NDArray[np.int64]
    """Length of each."""
    first: npt.NDArray[np.int64]
    """Index of the first run of extent i; one entry more than extents."""


def find_runs(
    *,
    pointers: npt.NDArray[np.int64],
    bounds: npt.NDArray[np.int64],
    slots: Slots,
    wanted: Mask,
    segment_slots: int,
    unit: int,
) -> Runs:
    """Join wanted chunks that follow each other in one extent and in one segment of the pool.

    Args:
        pointers: device address of each extent.
        bounds: index of each extent's first chunk, and the end.
        unit: bytes of a chunk.
    """
    chunk = np.flatnonzero(wanted)
    slot = slots[chunk]
    owner = np.searchsorted(bounds, chunk, side="right") - 1
    begins = np.ones(len(chunk), dtype=np.bool_)
    begins[1:] = (
        (np.diff(chunk) != 1) | (np.diff(slot) != 1) | (np.diff(owner) != 0) | (np.diff(slot // segment_slots) != 0)
    )
    start = np.flatnonzero(begins)
    owners = owner[start]
    return Runs(
        addresses=pointers[owners] + (chunk[start] - bounds[owners]) * unit,
        slots=slot[start],
        chunks=np.diff(start, append=len(chunk)),
        first=np.searchsorted(owners, np.arange(len(pointers) + 1)),
    )
