"""Content that can be told apart, and short words for storing and loading it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from kybernate.model.snapshot_names import SnapshotName
from kybernate.model.types import CHUNK_BYTES
from kybernate.store import Keys, LocalMedium, Space, Tier, keys_of, open_reader, open_writer
from kybernate.store.manifests import Manifest, StoredExtent
from kybernate.store.memory import Buffer
from kybernate.store.needs import Needs
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
    with open_writer(space, name) as writer:
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
    with open_reader(space, name) as reader:
        if not reader.manifest.extents:
            return []
        extent = reader.manifest.extents[0]
        slots = empty_slots([extent.length(k) for k in range(extent.count)])
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


SNAPSHOTS = 10
CHUNKS = 51_200
"""Of each snapshot: 100 GiB."""
OWN = 10_000
"""Of each, that no other has."""


def many_snapshots(space: Space, count: int = SNAPSHOTS) -> None:
    """Metadata of a terabyte, 276 GiB without what is there twice: real packs, manifests and rows, with some bytes in place of
    each chunk of 2 MiB."""
    shared = [PLAIN.chunk_id(memoryview(_small(f"shared-{k}"))) for k in range(CHUNKS - OWN)]
    for number in range(count):
        with open_writer(space, f"s-{number}") as writer:
            names = [f"{number}-{k}" for k in range(OWN)]
            if number == 0:
                names = [*(f"shared-{k}" for k in range(CHUNKS - OWN)), *names]
            ids = [] if number == 0 else list(shared)
            for name in names:
                content = memoryview(_small(name))
                ids.append(PLAIN.chunk_id(content))
                writer.chunks.put(ids[-1], content, None)
            extent = StoredExtent(first=0, size=CHUNKS * CHUNK_BYTES)
            table = b"".join(ids)
            writer.adopt(Manifest(SnapshotName(""), "", 0.0, (extent,), (), table, {}, {}, Needs(), ()))
            writer.commit()


def _small(seed: str) -> bytes:
    return seed.encode().ljust(64, b".")
