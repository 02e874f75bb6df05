"""The simulated GPU of `kybernate up --simulated`: made beside the state directory and found again by the next agent.

Not in the state directory: workloads don't see that, and they must find the GPU.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from kybernate.model.errors import BadInput, Conflict, NotFound
from kybernate.model.layout import StateDirectory
from kybernate.model.quantities import format_size
from kybernate.model.types import CHUNK_BYTES, MIB

_LEAST = 64 * MIB
_MOST = 1 << 40
"""More than any GPU has; an absurd one would fail in the middle."""


def gpu_path(state: StateDirectory) -> Path:
    return state.root.with_name(f"{state.root.name}-gpu")


def simulated_environment(state: StateDirectory, size_bytes: int, environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` with the simulated driver in front; equal to it when that is so already. Makes the GPU if need be.

    Raises:
        BadInput: a size that can't be.
        Conflict: there is one of another size, in use.
        Unsupported: the library has not been built.
    """
    from kybernate.cuda import simulated

    if not _LEAST <= size_bytes <= _MOST or size_bytes % CHUNK_BYTES:
        raise BadInput(
            f"a simulated GPU of {size_bytes} bytes is not possible", hint="give 64MiB to 1TiB, in steps of 2 MiB"
        )
    path = gpu_path(state)
    try:
        gpu = simulated.describe(path)
    except NotFound:
        try:
            gpu = simulated.make(path, size_bytes=size_bytes)
        except OSError as e:
            raise BadInput(
                f"can't make a simulated GPU at {path}: {e.strerror}", hint="give another directory with --state-dir"
            ) from e
    if gpu.size_bytes != size_bytes:
        if gpu.used_bytes:
            raise Conflict(
                f"the simulated GPU at {path} has {format_size(gpu.size_bytes)} and is in use",
                hint="stop its workloads, or give that size",
            )
        simulated.remove(path)
        gpu = simulated.make(path, size_bytes=size_bytes)
    return simulated.environment([gpu], environment)


def remove_simulated(state: StateDirectory) -> None:
    """Remove it if it is there and nobody uses it."""
    from kybernate.cuda import simulated

    path = gpu_path(state)
    with contextlib.suppress(NotFound, OSError):
        if simulated.describe(path).used_bytes == 0 or os.geteuid() != 0:
            simulated.remove(path)
