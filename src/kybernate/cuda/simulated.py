"""Makes and removes simulated GPUs: the directories that the simulated driver takes for one.

A simulated GPU is a tmpfs of the size of its VRAM, so that the kernel accounts for it across processes, also for
killed ones. Without root nothing can be mounted: then it is a plain directory with a file `size`, and each process is
held to that size by itself (`Gpu.free_bytes` doesn't see what others took). Anything the simulated driver shows
proves logic and faults, never a speed.

Limits: a path of a socket in it must fit 107 bytes, so the directory's own path must be short; on a plain directory
several GPUs on one file system can't be told apart when memory is imported.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import uuid as uuids
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kybernate.model.errors import BadInput, Conflict, KybernateError, NotFound
from kybernate.model.native import simulated_driver
from kybernate.model.types import CHUNK_BYTES, GpuUuid

VARIABLE = "KYBERNATE_SIMULATED_GPU"
"""Names the directories, separated by colons; one device each."""
LINK_VARIABLE = "KYBERNATE_SIMULATED_LINK_GIB_S"
"""GiB/s of each copy between host and device; unset: as fast as the machine."""

_PATH_MAX = 107 - len("/sockets/4294967295-4194304")
_IDENTITY = "uuid"
_SIZE = "size"
_SOURCE = "kybernate-simulated-gpu"


@dataclass(frozen=True, slots=True)
class SimulatedGpu:
    path: Path
    size_bytes: int
    uuid: GpuUuid
    mounted: bool
    """On a tmpfs of its own: the kernel accounts for its memory."""

    @property
    def used_bytes(self) -> int:
        """Memory in use by all processes, as the driver would report it; 0 where the kernel doesn't account for it."""
        if not self.mounted:
            return 0
        space = os.statvfs(self.path)
        return (space.f_blocks - space.f_bavail) * space.f_frsize

    def __str__(self) -> str:
        kind = "on tmpfs" if self.mounted else "a plain directory, each process limited by itself"
        return f"simulated GPU {self.uuid} of {self.size_bytes} bytes at {self.path} ({kind})"


def make(path: Path, *, size_bytes: int, uuid: GpuUuid | None = None) -> SimulatedGpu:
    """A new simulated GPU at `path`, which must not exist or be an empty directory. `uuid`: random when not given.

    Raises:
        BadInput: a size that is no multiple of 2 MiB, a path too long, a malformed uuid.
        Conflict: there is something at `path`.
        KybernateError: it couldn't be mounted.
    """
    path = path.absolute()
    if size_bytes <= 0 or size_bytes % CHUNK_BYTES:
        raise BadInput(f"a simulated GPU of {size_bytes} bytes", hint=f"give a multiple of {CHUNK_BYTES} bytes")
    if len(os.fsencode(path)) > _PATH_MAX or ":" in str(path):
        raise BadInput(
            f"{path} can't hold a simulated GPU",
            hint=f"use a path of at most {_PATH_MAX} bytes without a colon",
        )
    identity = _checked(uuid) if uuid else GpuUuid(f"GPU-{uuids.uuid4()}")
    if path.is_mount() or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
        raise Conflict(f"{path} is already in use", hint="choose another path, or remove what is there")
    path.mkdir(parents=True, exist_ok=True)
    mounted = os.geteuid() == 0
    if mounted:
        _command("mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=1777", _SOURCE, str(path))
    else:
        (path / _SIZE).write_text(f"{size_bytes}\n")
    # A link, not a file: it takes no page of the tmpfs, so that an unused GPU shows 0 bytes in use.
    (path / _IDENTITY).symlink_to(identity)
    sockets = path / "sockets"
    sockets.mkdir()
    sockets.chmod(stat.S_IRWXU | stat.S_IRWXG | stat.S_IRWXO | stat.S_ISVTX)
    return SimulatedGpu(path=path, size_bytes=size_bytes, uuid=identity, mounted=mounted)


def describe(path: Path) -> SimulatedGpu:
    """The simulated GPU at `path`.

    Raises:
        NotFound: there is none.
    """
    path = path.absolute()
    try:
        identity = GpuUuid(str((path / _IDENTITY).readlink()))
        mounted = path.is_mount()
        if mounted:
            space = os.statvfs(path)
            size = space.f_blocks * space.f_frsize
        else:
            size = int((path / _SIZE).read_text())
    except (OSError, ValueError) as e:
        raise NotFound(f"no simulated GPU at {path}: {e}") from e
    return SimulatedGpu(path=path, size_bytes=size, uuid=identity, mounted=mounted)


def remove(path: Path) -> None:
    """Remove it; processes that still use it keep their memory until they end.

    Raises:
        NotFound: there is no simulated GPU at `path`.
        KybernateError: it couldn't be unmounted.
    """
    gpu = describe(path)
    if gpu.mounted:
        _command("umount", "--lazy", str(gpu.path))
        gpu.path.rmdir()
    else:
        shutil.rmtree(gpu.path)


def environment(gpus: Sequence[SimulatedGpu], base: Mapping[str, str]) -> dict[str, str]:
    """`base` with which a process finds the simulated driver and these GPUs.

    Raises:
        Unsupported: the library has not been built.
    """
    directory = str(simulated_driver().parent)
    kept = [part for part in base.get("LD_LIBRARY_PATH", "").split(":") if part and part != directory]
    return {
        **base,
        "LD_LIBRARY_PATH": ":".join([directory, *kept]),
        VARIABLE: ":".join(str(gpu.path) for gpu in gpus),
    }


def present(variables: Mapping[str, str] = os.environ) -> tuple[SimulatedGpu, ...]:
    """The simulated GPUs that an environment names; none is an empty tuple.

    Raises:
        NotFound: one that is named isn't there.
    """
    return tuple(describe(Path(part)) for part in variables.get(VARIABLE, "").split(":") if part)


def _checked(uuid: GpuUuid) -> GpuUuid:
    try:
        return GpuUuid(f"GPU-{uuids.UUID(uuid.removeprefix('GPU-'))}")
    except ValueError as e:
        raise BadInput(f"{uuid!r} is no GPU's uuid", hint="write it as GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx") from e


def _command(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise KybernateError(f"`{' '.join(words)}` failed: {done.stderr.strip()[:256]}")
