"""What this host is, as far as a snapshot may need it; and what a dumped workload needs of one."""

from __future__ import annotations

import os
import platform
import re
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from blake3 import blake3

from kybernate.cuda.copying import CopyEngine
from kybernate.cuda.driver import Gpu
from kybernate.engine.stored import StoredGpu
from kybernate.model.errors import KybernateError
from kybernate.model.types import GpuUuid
from kybernate.process.criu import find_criu
from kybernate.process.images import TreeRecord
from kybernate.store import FileNeed, GpuNeed, Host, Needs

_DIGEST_MAX_BYTES = 1 << 30
"""Of larger files (data that is mapped) only the size is compared: reading them would take longer than the restore."""


class Digests:
    """BLAKE3 of files, each read once as long as it stays as it is. Thread-safe."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, int, int], str] = {}
        self._lock = threading.Lock()

    def of(self, path: Path) -> str:
        """In hexadecimal digits. Raises OSError."""
        found = path.stat()
        key = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        with self._lock:
            known = self._known.get(key)
        if known is None:
            hasher = blake3(max_threads=blake3.AUTO)
            known = hasher.update_mmap(path).hexdigest() if found.st_size else hasher.hexdigest()
            with self._lock:
                self._known[key] = known
        return known


def this_host(copiers: Mapping[GpuUuid, CopyEngine]) -> Host:
    """What is here. Takes milliseconds."""
    criu = None
    with suppress(KybernateError):
        criu = find_criu().version_text
    return Host(
        gpus=tuple(GpuNeed(name=copier.gpu.name, memory_bytes=copier.gpu.total_bytes) for copier in copiers.values()),
        driver=driver_release([copier.gpu for copier in copiers.values()]),
        cpu_features=_cpu_features(),
        kernel=platform.release(),
        criu=criu,
    )


def needs_of(record: TreeRecord, gpus: Sequence[StoredGpu], driver: str | None, digests: Digests) -> Needs:
    """What a dumped workload needs. Reads the files it has mapped, the first time."""
    return Needs(
        gpus=tuple(GpuNeed(name=gpu.name, memory_bytes=gpu.memory_bytes) for gpu in gpus),
        driver=driver if gpus else None,
        cpu_features=record.cpu_flags,
        kernel=record.kernel,
        criu=record.criu,
        files=tuple(
            FileNeed(path=file.path, size_bytes=file.bytes, digest=_digest(Path(file.path), file.bytes, digests))
            for file in record.needs
            if not file.written  # what is open for writing may grow; a restore looks whether it is there
        ),
    )


def driver_release(gpus: Sequence[Gpu]) -> str | None:
    """The NVIDIA driver's release, such as 580.159.04; None without a GPU."""
    if not gpus:
        return None
    if gpus[0].simulated:
        return f"simulated {gpus[0].driver_version()}"
    with suppress(OSError):
        text = Path("/proc/driver/nvidia/version").read_text()
        if found := re.search(r"(?:Kernel Module\D*|NVRM version:.*?\s)(\d+\.\d+[.\d]*)", text):
            return found[1]
    return str(gpus[0].driver_version())


def _digest(path: Path, size: int, digests: Digests) -> str | None:
    if size > _DIGEST_MAX_BYTES:
        return None
    try:
        if path.stat().st_size == size and os.access(path, os.R_OK):
            return digests.of(path)
    except OSError:
        pass  # seen otherwise by the workload than by us: the size is all there is
    return None


def _cpu_features() -> tuple[str, ...]:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return tuple(sorted(line.partition(":")[2].split()))
    return ()
