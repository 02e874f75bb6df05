"""The simulated GPU of `kybernate up --simulated`: made beside the state directory and found again by the next agent.

Not in the state directory: workloads don't see that, and they must find the GPU.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from kybernate.model.errors import BadInput, Conflict, KybernateError, NotFound
from kybernate.model.layout import StateDirectory
from kybernate.model.quantities import format_size
from kybernate.model.types import CHUNK_BYTES, MIB

MADE_VARIABLE = "KYBERNATE_SIMULATED_MADE"
"""Set for the process that follows: the GPU was made for this order, so whoever fails takes it away again."""
_LEAST = 64 * MIB
_MOST = 1 << 40
"""More than any GPU has; an absurd one would fail in the middle."""


def gpu_path(state: StateDirectory) -> Path:
    return state.root.with_name(f"{state.root.name}-gpu")


def simulated_environment(state: StateDirectory, size_bytes: int, environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` with the simulated driver in front; equal to it when that is so already. Makes the GPU if need be, and then
    says so in MADE_VARIABLE.

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
    made = False
    try:
        gpu = simulated.describe(path)
    except NotFound:
        try:
            gpu, made = simulated.make(path, size_bytes=size_bytes), True
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
        gpu, made = simulated.make(path, size_bytes=size_bytes), True
    if not made:
        return simulated.environment([gpu], environment)
    with taken_away_on_failure(state):
        return {**simulated.environment([gpu], environment), MADE_VARIABLE: "1"}


@contextlib.contextmanager
def taken_away_on_failure(state: StateDirectory) -> Iterator[None]:
    """The GPU was made just now for what is done within: if that fails, it goes too, unless somebody uses it already."""
    try:
        yield
    except Exception:
        with contextlib.suppress(KybernateError, OSError), _no_agent(state):
            _remove_untouched(state)
        raise


@contextlib.contextmanager
def _no_agent(state: StateDirectory) -> Iterator[None]:
    """Hold the agent's lock, so that none begins meanwhile. Raises BlockingIOError: there is one."""
    if not state.root.exists():
        yield
        return
    lock = os.open(state.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(lock)


def _remove_untouched(state: StateDirectory) -> None:
    """Not if workloads are there, which would miss it, or anybody has memory on it or talks to others through it."""
    from kybernate.cuda import simulated

    path = gpu_path(state)
    if state.workloads.is_dir() and any(state.workloads.iterdir()):
        return
    if simulated.describe(path).used_bytes or any((path / "sockets").iterdir()):
        return
    simulated.remove(path)


def remove_simulated(state: StateDirectory) -> None:
    """Remove it if it is there and nobody uses it."""
    from kybernate.cuda import simulated

    path = gpu_path(state)
    with contextlib.suppress(NotFound, OSError):
        if simulated.describe(path).used_bytes == 0 or os.geteuid() != 0:
            simulated.remove(path)
