"""Content that can be told apart, and short words for storing and loading it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from kybernate.model.types import CHUNK_BYTES
from kybernate.store import Keys, LocalMedium, Space, Tier, keys_of
from kybernate.store.memory import Buffer
from kybernate.store.tenants import TenantName

SECRET = bytes(range(32))
TENANT = TenantName("default")
PLAIN = keys_of(TENANT)
SEALED = keys_of(TENANT, SECRET)


def noise(seed: int, size: int = CHUNK_BYTES) -> bytes:
    """Bytes that don't shrink, the same for the same seed."""
    return random.Random(seed).randbytes(size)


class Slots:
    """Page-aligned memory, a chunk each, as the pinned pool has it."""

    def __init__(self, contents: Sequence[bytes]) -> None:
        self._buffers = [Buffer() for _ in contents]
        self.views = [b.view[: len(content)] for b, content in zip(self._buffers, contents, strict=True)]
        for view, content in zip(self.views, contents, strict=True):
            view[:] = content

    def contents(self) -> list[bytes]:
        return [bytes(view) for view in self.views]


def empty_slots(sizes: Sequence[int]) -> Slots:
    """Filled with what isn't the content."""
    return Slots([b"\xa5" * size for size in sizes])


OpenTier = Callable[..., Tier]


def save(space: Space, name: str, contents: Sequence[bytes | None], **files: bytes) -> int:
    """Store a snapshot of one extent and some files; None is a chunk of zeros. Returns the bytes written."""
    slots = Slots([content or b"" for content in contents])
    views = [None if c is None else v for c, v in zip(contents, slots.views, strict=True)]
    with space.writer(name) as writer:
        if contents:
            last = contents[-1]
            size = (len(contents) - 1) * CHUNK_BYTES + (CHUNK_BYTES if last is None else len(last))
            writer.add_extent(views, size=size, about={"address": 4096})
        for path, content in files.items():
            writer.add_bytes(path, content)
        writer.commit(state={"depth": "zero"})
        return writer.stored


def load(space: Space, name: str) -> list[bytes]:
    """All chunks of a snapshot's first extent."""
    with space.reader(name) as reader:
        if not reader.manifest.extents:
            return []
        extent = reader.manifest.extents[0]
        slots = empty_slots([reader.length(extent, k) for k in range(extent.count)])
        reader.read_part(extent, slots.views)
        return slots.contents()


def packs_of(tier: Tier, keys: Keys = PLAIN) -> list[Path]:
    """The pack files of a local tier."""
    assert isinstance(tier.medium, LocalMedium)
    directory = tier.medium.root / keys.tenant / "packs"
    return sorted(path for path in directory.iterdir()) if directory.exists() else []


def manifest_path(tier: Tier, name: str, keys: Keys = PLAIN) -> Path:
    assert isinstance(tier.medium, LocalMedium)
    return tier.medium.root / keys.tenant / "manifests" / name
