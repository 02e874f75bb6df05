"""What the steps of pause, resume and recovery share: the parts of the GPU side, and the workload's connections."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from kybernate.cuda.broker import Broker
from kybernate.cuda.control import Control
from kybernate.cuda.copying import CopyEngine
from kybernate.cuda.extents import Extent
from kybernate.cuda.packets import close_all
from kybernate.cuda.pool import PinnedPool
from kybernate.engine.copies import CopyStore
from kybernate.engine.endings import as_told
from kybernate.engine.faults import Faults
from kybernate.engine.target import CudaProcess, Target
from kybernate.engine.undo import UndoStack
from kybernate.model.errors import BadInput, Busy, Conflict, KybernateError, NoRoom, Unsupported
from kybernate.model.types import CHUNK_BYTES, GpuUuid, HostPid, StepTiming, WorkloadName

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Parts:
    """Made once by the agent, ahead of every operation."""

    broker: Broker
    pool: PinnedPool
    copiers: Mapping[GpuUuid, CopyEngine]
    store: CopyStore
    executor: Executor
    faults: Faults
    output_bytes: int
    """What stays of the output of workloads that are brought back."""


@dataclass(slots=True)
class Clock:
    """Wall time of each step, for the report."""

    begun: float = field(default_factory=time.perf_counter)
    steps: list[StepTiming] = field(default_factory=list)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.steps.append(StepTiming(name, time.perf_counter() - begun))

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.begun


def every(executor: Executor, do: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """`do` for all items at once, results in order. Waits for all, then raises the first error.

    Where there are no threads to be had, one after the other: an undo has to be done whatever the machine is short of.
    """
    if len(items) == 1:
        return [do(items[0])]
    futures = [_begin(executor, do, item) for item in items]
    errors = [error for future in futures if (error := future.exception()) is not None]
    if errors:
        raise errors[0]
    return [future.result() for future in futures]


def _begin(executor: Executor, do: Callable[[T], R], item: T) -> Future[R]:
    try:
        return executor.submit(do, item)
    except RuntimeError:
        done: Future[R] = Future()
        try:
            done.set_result(do(item))
        except Exception as e:  # it is the waiter's
            done.set_exception(e)
        return done


@contextmanager
def connections(processes: Iterable[CudaProcess]) -> Iterator[dict[HostPid, Control]]:
    """A control connection to each process. Leaving the block hangs up, which is itself an undo (protocol.h)."""
    with ExitStack() as stack:
        yield {process.pid: stack.enter_context(process.control()) for process in processes}


def refuse_newcomers(parts: Parts, name: WorkloadName, pids: Iterable[HostPid], *, known: Collection[HostPid]) -> None:
    """Of locked processes: none may map extents that this operation doesn't know of.

    A process that began to use CUDA meanwhile would be checkpointed with imported memory mapped; the driver does that, and
    then refuses to restore it.

    Raises:
        Busy: there is one.
    """
    for pid in pids:
        if pid not in known and parts.broker.extents(name, pid):
            raise Busy(f"process {pid} of workload {name} has just begun to use the GPU", hint="try again")


def unsaid(error: Exception) -> Exception:
    """The error as it may be told once something has changed: refusals promise that nothing has."""
    if not isinstance(error, Busy | Unsupported | NoRoom | Conflict):
        return error
    return KybernateError(error.message, hint=error.hint)


def roll_back(undo: UndoStack, error: Exception, *, committed: bool, target: Target, doing: str) -> Exception:
    """Undo a switch that failed. Returns the error to raise: `error` itself where everything is as it was before.

    `doing`: what was being done to the workload, "paused" or "resumed".
    """
    failed = undo.roll_back()
    error = as_told(target, error, doing=doing)
    if failed:
        error.add_note("not undone: " + "; ".join(failed))
    return unsaid(error) if failed or committed else error


def reconcile(parts: Parts, target: Target, pid: HostPid, control: Control) -> list[Extent]:
    """Bring the broker's picture of a process in line with the process's own, which is the truth.

    Adopts extents the broker doesn't know (a predecessor granted them), drops what the process no longer has (its FREE
    was lost). Returns the process's extents in the process's order.
    """
    known = {extent.id: extent for extent in parts.broker.extents(target.name, pid)}
    gpus = {copier.gpu.uuid_bytes: copier.gpu for copier in parts.copiers.values()}
    listed = control.extents(maximum=sum(gpu.total_bytes // CHUNK_BYTES for gpu in gpus.values()))
    ordered: list[Extent] = []
    try:
        for record, fd in listed:
            extent = known.pop(record.id, None)
            if extent is None and fd is not None:
                if (gpu := gpus.get(record.gpu)) is None:
                    raise BadInput(f"process {pid} of {target.name} has memory on a GPU that isn't here")
                extent = parts.broker.adopt(workload=target.name, pid=pid, gpu=gpu, record=record, fd=fd)
            if extent is not None:
                ordered.append(extent)
    finally:
        close_all(fd for _, fd in listed if fd is not None)
    parts.broker.drop(known.values())
    return ordered
