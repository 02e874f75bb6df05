"""Host copies of workloads' extents, and their manifests on disk.

A manifest is written before a process gives up its memory, beside the pool and outside of what workloads can see. Its
completion marks, one byte for each extent in a file of their own, are set as each extent's content is safe in the pool.
So after the agent's death the next one knows which slots of the pool hold what. The format: a line of JSON (lengths,
ids, sizes), then the raw slot and hash arrays. Manifests live on the same tmpfs as the pool and as long as it.
"""

from __future__ import annotations

import itertools
import json
import os
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kybernate.cuda.copying import ExtentCopy
from kybernate.cuda.hashing import HashKey
from kybernate.cuda.planning import Hashes
from kybernate.model.errors import KybernateError
from kybernate.model.types import Depth, ExtentId, GpuUuid, HostPid, WorkloadName

FORMAT = 3


class BadManifest(KybernateError):
    """A manifest can't be read; what it described is lost."""


@dataclass(slots=True)
class HeldExtent:
    """One extent of a workload, whose content the pool has or gets: whose, which, where, and its copy."""

    pid: HostPid
    id: ExtentId
    address: int
    gpu: GpuUuid
    copy: ExtentCopy
    done: bool = False
    """Its content is in the pool."""


@dataclass(slots=True)
class Manifest:
    name: WorkloadName
    depth: Depth
    extents: list[HeldExtent]
    marks: str = ""
    """Which file of marks on disk is this manifest's; `CopyStore.save` chooses it."""
    key: HashKey | None = None
    """What its hashes were made under, where that isn't this agent's own key: it was stored by another agent."""

    @property
    def complete(self) -> bool:
        return all(extent.done for extent in self.extents)

    def become_own(self, hashes: Mapping[ExtentId, Hashes]) -> None:
        """Its content was hashed again under this agent's own key."""
        for extent in self.extents:
            extent.copy.hashes[:] = hashes[extent.id]
        self.key = None

    def slots(self) -> np.ndarray:
        """All pool slots in use, int64."""
        used = [extent.copy.slots[extent.copy.slots >= 0] for extent in self.extents]
        return np.unique(np.concatenate(used)) if used else np.empty(0, np.int64)


class CopyStore:
    """Manifests in one directory, one a workload."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _path(self, name: WorkloadName) -> Path:
        return self._directory / f"{name}.manifest"

    def _marks(self, name: WorkloadName, marks: str) -> Path:
        return self._directory / f"{name}.{marks}.done"

    def save(self, manifest: Manifest) -> None:
        """Write a manifest so that it is there whole or not at all, with the marks of what is done already.

        The marks get a new file each time, which the manifest names: no crash can pair a manifest with another's marks.
        """
        marks = secrets.token_hex(4)
        self._marks(manifest.name, marks).write_bytes(bytes(extent.done for extent in manifest.extents))
        head = {
            "format": FORMAT,
            "name": manifest.name,
            "depth": manifest.depth,
            "marks": marks,
            "key": None if manifest.key is None else [manifest.key.low, manifest.key.high],
            "extents": [
                [e.pid, e.id, e.address, e.gpu, e.copy.size, e.copy.rdma, len(e.copy.slots)] for e in manifest.extents
            ],
        }
        temporary = self._path(manifest.name).with_suffix(".writing")
        with temporary.open("wb") as f:
            f.write(json.dumps(head).encode() + b"\n")
            for extent in manifest.extents:
                f.write(np.ascontiguousarray(extent.copy.slots, np.int64).data)
                f.write(np.ascontiguousarray(extent.copy.hashes, np.uint64).data)
        before, manifest.marks = manifest.marks, marks
        temporary.replace(self._path(manifest.name))
        if before:
            self._marks(manifest.name, before).unlink(missing_ok=True)

    def mark(self, manifest: Manifest, indexes: Iterable[int]) -> None:
        """Set the completion marks of extents, by their index in the manifest."""
        fd = os.open(self._marks(manifest.name, manifest.marks), os.O_WRONLY)
        try:
            for first, count in _stretches(sorted(indexes)):
                os.pwrite(fd, b"\1" * count, first)
                for extent in manifest.extents[first : first + count]:
                    extent.done = True
        finally:
            os.close(fd)

    def set_depth(self, manifest: Manifest, depth: Depth) -> None:
        """It was paused deeper, or not as deep, than it says. Saved."""
        manifest.depth = depth
        self.save(manifest)

    def keep_only(self, manifest: Manifest, pids: Collection[HostPid]) -> Manifest:
        """Without the extents of other processes, which have ended. Saved. Returns what went."""
        gone = [extent for extent in manifest.extents if extent.pid not in pids]
        manifest.extents = [extent for extent in manifest.extents if extent.pid in pids]
        self.save(manifest)
        return Manifest(manifest.name, manifest.depth, gone)

    def replace(self, manifest: Manifest, copies: Mapping[int, ExtentCopy]) -> None:
        """New copies of extents, by their index in the manifest, are complete. Saved and marked."""
        for index, copy in copies.items():
            manifest.extents[index].copy = copy
        self.save(manifest)
        self.mark(manifest, copies)

    def load(self, name: WorkloadName) -> Manifest | None:
        """The workload's manifest, or None.

        Raises:
            BadManifest: there is one that can't be read.
        """
        try:
            data = self._path(name).read_bytes()
        except FileNotFoundError:
            return None
        try:
            line, _, rest = data.partition(b"\n")
            head = json.loads(line)
            if head["format"] != FORMAT:
                raise ValueError(f"format {head['format']}, this version reads {FORMAT}")
            marks = self._marks(name, head["marks"]).read_bytes()
            extents, at = [], 0
            for (pid, id_, address, gpu, size, rdma, chunks), mark in zip(head["extents"], marks, strict=True):
                slots = np.frombuffer(rest, np.int64, chunks, at).copy()
                at += 8 * chunks
                hashes = np.frombuffer(rest, np.uint64, 2 * chunks, at).reshape(chunks, 2).copy()
                at += 16 * chunks
                copy = ExtentCopy(size=size, rdma=rdma, slots=slots, hashes=hashes)
                extents.append(HeldExtent(HostPid(pid), ExtentId(id_), address, GpuUuid(gpu), copy, done=bool(mark)))
            key = None if head["key"] is None else HashKey(*head["key"])
            return Manifest(WorkloadName(head["name"]), Depth(head["depth"]), extents, head["marks"], key)
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise BadManifest(
                f"manifest of {name} is damaged: {e}", hint="its GPU memory is lost; stop the workload"
            ) from e

    def remove(self, name: WorkloadName) -> None:
        """Raises KybernateError when the file system doesn't let it go."""
        try:
            self._path(name).unlink(missing_ok=True)
            for marks in self._directory.glob(f"{name}.*.done"):  # a name has no dots
                marks.unlink(missing_ok=True)
        except OSError as e:
            raise KybernateError(f"can't remove the manifest of {name}: {e.strerror} ({e.filename})") from e

    def names(self) -> list[WorkloadName]:
        return sorted(WorkloadName(path.stem) for path in self._directory.glob("*.manifest"))


def slots_given_up(before: Manifest, after: Manifest) -> np.ndarray:
    """Pool slots that an earlier picture of a workload has and a later one, built on it, doesn't have any more.

    An extent that is in both keeps its slots, chunk by chunk, but for chunks that became zero or moved.
    """
    now = {held.id: held.copy for held in after.extents}
    gone = [np.empty(0, np.int64)]
    for held in before.extents:
        slots = held.copy.slots
        later = now.get(held.id)
        kept = later.slots == slots if later is not None and later.size == held.copy.size else np.False_
        gone.append(slots[(slots >= 0) & ~kept])
    return np.concatenate(gone)


def _stretches(indexes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ascending indexes as (first, count) of those that follow each other."""
    for _, pairs in itertools.groupby(enumerate(indexes), lambda pair: pair[1] - pair[0]):
        stretch = [index for _, index in pairs]
        yield stretch[0], len(stretch)
