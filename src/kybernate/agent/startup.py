"""Start-up of the hardware's side: GPUs, pool, copy engines, in that order. Blocks; run it in a thread.

A node where there is no usable GPU still runs plain processes; why is said in a note.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kybernate.agent.workloads.environment import SIMULATED_VARIABLE, Simulation
from kybernate.cuda import simulated
from kybernate.cuda.copying import CopyEngine
from kybernate.cuda.driver import Gpu, is_simulated, open_gpus
from kybernate.cuda.hashing import Hasher, load_key
from kybernate.cuda.kernels import Kernels
from kybernate.cuda.pool import PinnedPool
from kybernate.cuda.pool_directory import prepare_pool_directory, release_pool_directory
from kybernate.cuda.processes import DriverList, ProcessList, SimulatedList
from kybernate.model.errors import KybernateError
from kybernate.model.layout import StateDirectory
from kybernate.model.native import simulated_driver
from kybernate.model.quantities import format_size
from kybernate.model.types import CHUNK_BYTES, GIB, MIB, GpuUuid
from kybernate.settings import AgentSettings

log = logging.getLogger(__name__)

_POOL = "pool"
_MANIFESTS = "copies"
"""Both in the pool's tmpfs: content and the list of it live and die together."""
_SMALL_SEGMENT = 64 * MIB
"""Segments of pools under 4 GiB, so that the first of it is ready soon."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """What was opened."""

    gpus: Sequence[Gpu]
    pool: PinnedPool
    copiers: Mapping[GpuUuid, CopyEngine]
    driver_version: str
    simulation: Simulation | None
    pool_directory: Path
    manifests: Path
    """In the pool's tmpfs, too."""
    processes: ProcessList

    def remove_pool(self) -> None:
        """Give the pool's memory back to the machine. Close the pool before."""
        for entry in self.pool_directory.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
        release_pool_directory(self.pool_directory)
        self.pool_directory.rmdir()


def open_hardware(*, settings: AgentSettings, state: StateDirectory) -> Hardware:
    """Open everything.

    Raises:
        Unsupported: no driver or no GPU that can be used.
        KybernateError: the pool can't be made.
    """
    gpus = open_gpus()
    size = settings.pool.size or default_pool_size(
        ram_bytes=_ram_bytes(), vram_bytes=sum(gpu.total_bytes for gpu in gpus)
    )
    directory = prepare_pool_directory(state.pool_mount, size_bytes=size + manifest_room(size))
    _drop_unused_pool(directory, wanted_bytes=size)
    pool = PinnedPool(
        path=directory / _POOL, size_bytes=size, gpus=gpus, segment_bytes=GIB if size >= 4 * GIB else _SMALL_SEGMENT
    )
    key = load_key(state.hash_key)
    copiers = {}
    for gpu in gpus:
        hasher = Hasher(gpu, key=key, kernels=Kernels(gpu))
        copiers[gpu.uuid] = CopyEngine(gpu, pool=pool, hasher=hasher)
    version = gpus[0].driver_version()
    simulation = _simulation() if is_simulated() else None
    return Hardware(
        gpus=gpus,
        pool=pool,
        copiers=copiers,
        driver_version=f"{version // 1000}.{version % 1000 // 10}",
        simulation=simulation,
        pool_directory=directory,
        manifests=directory / _MANIFESTS,
        processes=DriverList([gpu.uuid for gpu in gpus]) if simulation is None else SimulatedList(simulated.present()),
    )


def _drop_unused_pool(directory: Path, *, wanted_bytes: int) -> None:
    """An earlier agent's pool of another size, where nothing lies in it; one with content stays as large as it is."""
    file, manifests = directory / _POOL, directory / _MANIFESTS
    if not file.exists() or file.stat().st_size == wanted_bytes // CHUNK_BYTES * CHUNK_BYTES:
        return
    if not manifests.is_dir() or not any(manifests.iterdir()):
        file.unlink()


def default_pool_size(*, ram_bytes: int, vram_bytes: int) -> int:
    """Half of the RAM, at most four times the VRAM, in whole GiB where it is that much."""
    size = min(ram_bytes // 2, 4 * vram_bytes)
    unit = GIB if size >= GIB else CHUNK_BYTES
    return max(size // unit * unit, _SMALL_SEGMENT)


def manifest_room(pool_bytes: int) -> int:
    """Beside the pool in its tmpfs: 24 bytes a chunk, twice while one is replaced, for as many extents as there may be."""
    return 16 * MIB + pool_bytes // CHUNK_BYTES * 512


def describe_pool(pool: PinnedPool) -> str:
    return f"host pool {format_size(pool.ready_bytes)} of {format_size(pool.size_bytes)} ready"


def _ram_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _simulation() -> Simulation:
    try:
        directory = simulated_driver().parent
    except KybernateError as e:
        raise KybernateError(f"the simulated driver is loaded, but {e.message}", hint=e.hint) from e
    return Simulation(library_directory=directory, setting=os.environ.get(SIMULATED_VARIABLE, ""))
