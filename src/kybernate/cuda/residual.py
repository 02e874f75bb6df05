"""The residual: what the driver keeps for a process besides extents, saved and restored by the driver's own checkpoint.

All processes of a workload go at once, a thread each, because the driver takes 0.3 to 0.6 s for each and does several in
parallel in little more. Every step undoes itself when one of them fails, so that a workload is never half locked; the one
exception, a Restore that fails, is told as WorkloadLost.

A process that holds no CUDA state is skipped everywhere. The driver (580) answers its state query with NOT_INITIALIZED, also
when libcuda is loaded but cuInit wasn't called, and one for a process that doesn't exist with OPERATING_SYSTEM.

Limits: never call `checkpoint_all` while a process maps imported memory: the driver would succeed and then refuse to restore.
The caller sees to that (RELEASE answered OK). A locked process blocks in every CUDA call, its preload library included.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kybernate.cuda.driver import CudaError, bindings, call
from kybernate.model.errors import Busy, KybernateError, NoRoom, Unsupported, WorkloadLost
from kybernate.model.types import HostPid

_NO_CUDA = frozenset(
    {
        "CUDA_ERROR_NOT_INITIALIZED",
        "CUDA_ERROR_OPERATING_SYSTEM",
        "CUDA_ERROR_INVALID_VALUE",  # the simulated driver's answer
    }
)
_REASONS = {
    "CUDA_ERROR_NOT_READY": "its CUDA calls didn't come to rest in time",
    "CUDA_ERROR_NOT_SUPPORTED": "managed memory, CUDA IPC, MPS, MIG or imported memory that is still mapped",
    "CUDA_ERROR_ILLEGAL_STATE": "somebody else is checkpointing it",
}


class ResidualState(enum.Enum):
    ABSENT = "absent"
    """The process holds no CUDA state, or is gone."""
    RUNNING = "running"
    LOCKED = "locked"
    CHECKPOINTED = "checkpointed"
    FAILED = "failed"


def state(pid: HostPid) -> ResidualState:
    """Where the driver says the process stands.

    Raises:
        CudaError: an answer that isn't one of those known to mean `ABSENT`.
    """
    try:
        answer = call("cuCheckpointProcessGetState", int(pid))
    except CudaError as e:
        if e.name in _NO_CUDA:
            return ResidualState.ABSENT
        raise
    known = bindings().CUprocessState
    if answer == known.CU_PROCESS_STATE_RUNNING:
        return ResidualState.RUNNING
    if answer == known.CU_PROCESS_STATE_LOCKED:
        return ResidualState.LOCKED
    if answer == known.CU_PROCESS_STATE_CHECKPOINTED:
        return ResidualState.CHECKPOINTED
    return ResidualState.FAILED


def restore_thread(pid: HostPid) -> int:
    """Id of the driver's thread in the process that does the restoring. It must never be frozen alone."""
    return int(call("cuCheckpointProcessGetRestoreThreadId", int(pid)))


def lock_all(pids: Sequence[HostPid], timeout_s: float) -> None:
    """Lock all of them: from then on their CUDA calls block. Locked ones stay so.

    Raises:
        Busy: one can't be locked now; none of those locked here is locked any more.
        WorkloadLost: one ended meanwhile; likewise.
    """
    wanted = [pid for pid in pids if state(pid) is ResidualState.RUNNING]
    arguments = bindings().CUcheckpointLockArgs()
    arguments.timeoutMs = max(1, round(timeout_s * 1000))
    failures = _each(wanted, lambda pid: call("cuCheckpointProcessLock", int(pid), arguments))
    if not failures:
        return
    # Also those that failed: the driver may have locked them after all.
    _each(wanted, _unlock)
    pid, error = next(iter(failures.items()))
    if not _alive(pid):
        raise WorkloadLost(f"process {pid} ended while it was being locked") from error
    raise Busy(f"CUDA of process {pid} can't be locked: {_why(error)}") from error


def checkpoint_all(pids: Sequence[HostPid]) -> None:
    """Move the residual of locked processes into their own host memory. They hold no GPU afterwards.

    Raises:
        Unsupported: the driver can't do it for one of them; all run on, unlocked.
        KybernateError: it failed for another reason; likewise.
        WorkloadLost: one ended meanwhile, or the way back failed; the message names it.
    """
    wanted = [pid for pid in pids if state(pid) is ResidualState.LOCKED]
    failures = _each(wanted, lambda pid: call("cuCheckpointProcessCheckpoint", int(pid), None))
    if not failures:
        return
    pid, error = next(iter(failures.items()))
    lost = {p: e for p, e in _each(wanted, _bring_back).items() if _alive(p)}
    if lost:
        other, why = next(iter(lost.items()))
        raise WorkloadLost(
            f"process {other} can't be brought back after the checkpoint of {pid} failed: {_why(why)}"
        ) from error
    if not _alive(pid):
        raise WorkloadLost(f"process {pid} ended during its checkpoint") from error
    if isinstance(error, CudaError) and error.name == "CUDA_ERROR_NOT_SUPPORTED":
        raise Unsupported(
            f"the driver can't checkpoint process {pid}", hint=f"likely {_REASONS[error.name]}"
        ) from error
    raise KybernateError(f"the checkpoint of process {pid} failed: {_why(error)}", hint="it runs on") from error


def restore_all(pids: Sequence[HostPid]) -> None:
    """Give the residual of checkpointed processes back to the GPU. They stay locked.

    Raises:
        NoRoom: VRAM is too small for one; they are all checkpointed as before.
        WorkloadLost: one couldn't be restored; names it and the driver's answer.
    """
    wanted = [pid for pid in pids if state(pid) is ResidualState.CHECKPOINTED]
    failures = _each(wanted, _restore)
    if failures:
        pid, error = next(iter(failures.items()))
        if all(isinstance(e, CudaError) and e.out_of_memory for e in failures.values()) and all(
            state(p) is ResidualState.CHECKPOINTED for p in failures
        ):
            _each(
                [p for p in wanted if p not in failures], lambda p: call("cuCheckpointProcessCheckpoint", int(p), None)
            )
            raise NoRoom(
                f"VRAM is too small for the driver's state of process {pid}",
                hint="`kybernate ps` shows who holds it; pause or stop one",
            ) from error
        raise WorkloadLost(f"the driver can't restore process {pid}: {_why(error)}") from error


def unlock_all(pids: Sequence[HostPid]) -> None:
    """Let the CUDA calls of locked processes go on. Those not locked are left as they are.

    Raises:
        WorkloadLost: one couldn't be unlocked.
    """
    failures = _each(list(pids), _unlock)
    if failures:
        pid, error = next(iter(failures.items()))
        raise WorkloadLost(f"the driver can't unlock process {pid}: {_why(error)}") from error


def _unlock(pid: HostPid) -> None:
    if state(pid) is ResidualState.LOCKED:
        call("cuCheckpointProcessUnlock", int(pid), None)


def _restore(pid: HostPid) -> None:
    try:
        call("cuCheckpointProcessRestore", int(pid), None)
    except CudaError as e:
        if not e.out_of_memory:
            raise
        # VRAM that others are just giving back is there a moment later; the process is still checkpointed.
        time.sleep(_RESTORE_RETRY_S)
        call("cuCheckpointProcessRestore", int(pid), None)


_RESTORE_RETRY_S = 0.5


def _bring_back(pid: HostPid) -> None:
    if state(pid) is ResidualState.CHECKPOINTED:
        _restore(pid)
    _unlock(pid)


def _each(pids: Sequence[HostPid], action: Callable[[HostPid], object]) -> dict[HostPid, KybernateError]:
    """Do it to all at once; what failed, by process."""

    def attempt(pid: HostPid) -> KybernateError | None:
        try:
            action(pid)
        except KybernateError as e:
            return e
        return None

    if len(pids) <= 1:
        outcomes = [attempt(pid) for pid in pids]
    else:
        with ThreadPoolExecutor(max_workers=len(pids), thread_name_prefix="kybernate-residual") as threads:
            outcomes = list(threads.map(attempt, pids))
    return {pid: error for pid, error in zip(pids, outcomes, strict=True) if error is not None}


def _why(error: KybernateError) -> str:
    if isinstance(error, CudaError) and error.name in _REASONS:
        return f"{error.name} ({_REASONS[error.name]})"
    return error.message


def _alive(pid: HostPid) -> bool:
    """Whether the process is there and not a zombie."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    except OSError:
        return False
    return after_name.split()[0] not in "ZX"
