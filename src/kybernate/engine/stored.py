"""What the engine writes about a workload into a snapshot, and reads from one: pure, over the store's manifests.

extents          the workload's extents; `about` says whose, at which address, on which GPU
process/...      CRIU's dump (process/images.py)
engine/hashes    the GPU's hash of each chunk, 16 bytes each, extents in order
state            this module's words, as JSON
"""

from __future__ import annotations

import enum
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from kybernate.cuda.hashing import HashKey
from kybernate.cuda.planning import Hashes
from kybernate.model.errors import BadInput
from kybernate.model.types import CHUNK_BYTES, Backend, ExtentId, GpuUuid, WorkloadName, workload_name
from kybernate.store import Damaged, Manifest, TooNew

FORMAT = 1
PROCESS = "process"
"""Directory of CRIU's dump in a snapshot."""
HASHES = "engine/hashes"

_Hex64 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{1,16}$")]
_Uuid = Annotated[str, StringConstraints(min_length=5, max_length=100)]


class Kind(enum.StrEnum):
    """What a snapshot was taken for."""

    PARKED = "parked"
    """A paused workload lies there; it is resumed from it once."""
    IMAGE = "image"
    """Any number of workloads are made from it."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class StoredGpu(_Part):
    """A GPU the workload had memory on."""

    uuid: _Uuid
    index: int = Field(ge=0, le=1 << 16)
    name: str = Field(max_length=200)
    memory_bytes: int = Field(ge=0, le=1 << 50)


class _State(_Part):
    format: int
    kind: Kind
    workload: str
    backend: Backend
    uid: int = Field(ge=0, le=1 << 32)
    gid: int = Field(ge=0, le=1 << 32)
    gpus: tuple[StoredGpu, ...] = ()
    key: tuple[_Hex64, _Hex64]


class _About(_Part):
    pid: int = Field(ge=1, le=1 << 31)
    id: int = Field(ge=0, le=(1 << 64) - 1)
    address: int = Field(ge=0, le=(1 << 64) - 1)
    gpu: _Uuid
    rdma: bool = False


@dataclass(frozen=True, slots=True)
class DescribedExtent:
    """One extent of a stored workload."""

    pid: int
    """As the workload itself sees it."""
    id: ExtentId
    address: int
    gpu: GpuUuid
    rdma: bool
    size: int
    """Bytes."""

    @property
    def chunks(self) -> int:
        return self.size // CHUNK_BYTES

    def about(self) -> dict[str, Any]:
        """For the store's manifest."""
        return {"pid": self.pid, "id": self.id, "address": self.address, "gpu": self.gpu, "rdma": self.rdma}


@dataclass(frozen=True, slots=True)
class Described:
    """A snapshot of a workload, as its manifest tells of it. Sizes in bytes."""

    snapshot: str
    uid: str
    """Copies of one snapshot in several tiers share it."""
    kind: Kind
    workload: WorkloadName
    """Its name when the snapshot was taken."""
    backend: Backend
    owner: int
    """User number of the workload; `group` likewise."""
    group: int
    created: float
    """Seconds since 1970."""
    labels: Mapping[str, str]
    bytes: int
    """Of everything, zeros included."""
    gpus: tuple[StoredGpu, ...]
    key: HashKey
    """What its hashes were made under."""
    extents: tuple[DescribedExtent, ...]

    @property
    def vram_bytes(self) -> dict[GpuUuid, int]:
        """What it needs back on each GPU."""
        sizes: Counter[GpuUuid] = Counter()
        for extent in self.extents:
            sizes[extent.gpu] += extent.size
        return dict(sizes)


def state_of(
    *,
    kind: Kind,
    workload: WorkloadName,
    backend: Backend,
    owner: int,
    group: int,
    gpus: Sequence[StoredGpu],
    key: HashKey,
) -> dict[str, Any]:
    """The engine's part of a manifest."""
    return _State(
        format=FORMAT,
        kind=kind,
        workload=workload,
        backend=backend,
        uid=owner,
        gid=group,
        gpus=tuple(gpus),
        key=(f"{key.low:x}", f"{key.high:x}"),
    ).model_dump(mode="json")


def describe(manifest: Manifest) -> Described:
    """Read it again.

    Raises:
        TooNew: a newer Kybernate wrote it.
        Damaged: it makes no sense, or isn't of a workload.
    """
    what = f"snapshot {manifest.name}"
    number = manifest.state.get("format")
    if isinstance(number, int) and number > FORMAT:
        raise TooNew(f"{what} has format {number}; this version of Kybernate reads up to {FORMAT}")
    try:
        state = _State.model_validate(manifest.state)
        extents = tuple(_extent(extent.about, extent.size) for extent in manifest.extents)
        name = workload_name(state.workload)
    except (ValidationError, ValueError, BadInput) as e:
        raise Damaged(f"{what} makes no sense: {str(e).splitlines()[0]}") from e
    if len({extent.id for extent in extents}) != len(extents):
        raise Damaged(f"{what} makes no sense: it names an extent twice")
    if missing := {extent.gpu for extent in extents} - {gpu.uuid for gpu in state.gpus}:
        raise Damaged(f"{what} makes no sense: it has memory on {min(missing)}, of which it says nothing")
    return Described(
        snapshot=manifest.name,
        uid=manifest.uid,
        kind=state.kind,
        workload=name,
        backend=state.backend,
        owner=state.uid,
        group=state.gid,
        created=manifest.created,
        labels=manifest.labels,
        bytes=manifest.size,
        gpus=state.gpus,
        key=HashKey(int(state.key[0], 16), int(state.key[1], 16)),
        extents=extents,
    )


def _extent(about: Mapping[str, Any], size: int) -> DescribedExtent:
    if size <= 0 or size % CHUNK_BYTES:
        raise ValueError(f"an extent of {size} bytes")
    said = _About.model_validate(about)
    return DescribedExtent(said.pid, ExtentId(said.id), said.address, GpuUuid(said.gpu), said.rdma, size)


def pack_hashes(parts: Sequence[Hashes]) -> bytes:
    """All extents' hashes, in order."""
    return b"".join(np.ascontiguousarray(part, "<u8").tobytes() for part in parts)


def unpack_hashes(content: bytes, described: Described) -> list[Hashes]:
    """One array for each extent. Raises Damaged."""
    bounds = np.cumsum([0, *(extent.chunks for extent in described.extents)])
    if len(content) != 16 * bounds[-1]:
        raise Damaged(f"snapshot {described.snapshot} makes no sense: {len(content)} bytes of hashes")
    whole = np.frombuffer(content, "<u8").reshape(-1, 2).astype(np.uint64)
    return [whole[first:last].copy() for first, last in itertools.pairwise(bounds)]
