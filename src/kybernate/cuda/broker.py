"""The broker: owns all extents (`registry`) and answers the workloads' requests for memory.

Each workload has a listening socket in its run directory. Its requests are trusted only within its own workload: the peer's
pid comes from the kernel, ids must be that process's own, sizes are checked. One thread serves all sockets; it does nothing
that may block. A request that has to wait (WAIT) gets a thread of its own.

Memory is the peer's once it has read the answer: a peer that hangs up with the answer unread has the memory taken back. What
a process holds when it dies is the caller's to drop (`drop(extents(workload, pid))`).

Limits: the admission decides who may have memory; the broker only knows what is resident. Requests are served from `listen` on,
so the admission must be ready by then.
"""

from __future__ import annotations

import enum
import logging
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from kybernate.cuda import wire
from kybernate.cuda.driver import Gpu
from kybernate.cuda.extents import Extent
from kybernate.cuda.listener import Peer, Request, RequestListener
from kybernate.cuda.packets import close_all
from kybernate.cuda.registry import ExtentRegistry, check_size
from kybernate.cuda.waits import Waits
from kybernate.cuda.wire import Flag, Message, Record, Status, Type
from kybernate.model.errors import BadInput, KybernateError, NoRoom
from kybernate.model.types import CHUNK_BYTES, GIB, MIB, ExtentId, HostPid, WorkloadName

log = logging.getLogger(__name__)

_SHORT_OF_PROMISE_MAX = 3
"""So often may the driver have less than the admission granted before a process is told that its request will never fit."""


class Verdict(enum.Enum):
    GRANT = "grant"
    WAIT = "wait"
    """Not now; the process sends WAIT and asks again."""
    NEVER = "never"


class Admission(Protocol):
    """Who may allocate. Called by the broker's threads."""

    def hello(self, *, workload: WorkloadName, pid: HostPid, pid_inside: int) -> None:
        """A process of the workload uses CUDA, or found the agent again. Quick."""

    def may_allocate(self, *, workload: WorkloadName, gpu: Gpu, size: int) -> Verdict:
        """Quick: bookkeeping only."""

    def make_room(self, *, workload: WorkloadName, gpu: Gpu, size: int) -> bool:
        """May block for long, in a thread of the request's own. True: ask again; False: never."""


class Broker:
    """See the module. Thread-safe."""

    def __init__(self, *, gpus: Sequence[Gpu], admission: Admission, extent_bytes: int = GIB) -> None:
        """`extent_bytes`: the longest extent of an allocation that needn't be in one piece, 64 MiB to 1 GiB."""
        if not 64 * MIB <= extent_bytes <= GIB or extent_bytes % CHUNK_BYTES:
            raise BadInput(f"extents of {extent_bytes} bytes", hint=f"{64 * MIB} to {GIB}, a multiple of {CHUNK_BYTES}")
        self._admission = admission
        self._extent_bytes = extent_bytes
        self._gpus = {gpu.uuid_bytes: gpu for gpu in gpus}
        self._registry = ExtentRegistry(gpus)
        self._short_of_promise: Counter[Peer] = Counter()
        self._waits = Waits()
        self._listener = RequestListener(self._serve)

    # -- sockets -------------------------------------------------------------------------------------------------

    def listen(self, workload: WorkloadName, path: Path, *, uid: int, gid: int) -> None:
        """Listen at `path` for one workload; only `uid` (and root) can connect. A stale socket there is replaced.

        Raises:
            KybernateError: the socket can't be made.
        """
        self._listener.open(workload, path, uid=uid, gid=gid)

    def stop_listening(self, workload: WorkloadName) -> None:
        """Stop listening and remove the socket. Where nobody listens, that is fine."""
        self._listener.close(workload)

    def close(self) -> None:
        """Close all sockets and end the broker's thread. Extents stay: dropping them is a decision of its own."""
        self._listener.shut()

    # -- extents -------------------------------------------------------------------------------------------------

    def create(
        self,
        *,
        workload: WorkloadName,
        pid: HostPid,
        gpu: Gpu,
        sizes: Sequence[int],
        ids: Sequence[ExtentId] | None = None,
        rdma: bool = False,
    ) -> list[Extent]:
        """New, zeroed extents, all or none; see `ExtentRegistry.create`. No admission is asked: that is the caller's business."""
        return self._registry.create(workload=workload, pid=pid, gpu=gpu, sizes=sizes, ids=ids, rdma=rdma)

    def export(self, extent: Extent) -> int:
        """A new descriptor of the extent's memory; the caller closes it."""
        return self._registry.export(extent)

    def adopt(self, *, workload: WorkloadName, pid: HostPid, gpu: Gpu, record: Record, fd: int) -> Extent:
        """Take an extent back into account from a workload's descriptor; see `ExtentRegistry.adopt`."""
        rdma = bool(record.flags & Flag.RDMA)
        return self._registry.adopt(
            workload=workload, pid=pid, gpu=gpu, number=record.id, size=record.size, rdma=rdma, fd=fd
        )

    def drop(self, extents: Iterable[Extent]) -> None:
        """Unmap, release, forget; see `ExtentRegistry.drop`."""
        self._registry.drop(extents)

    def extents(self, workload: WorkloadName, pid: HostPid | None = None) -> list[Extent]:
        """A workload's (process's) extents, in the order they were made."""
        return self._registry.extents(workload, pid)

    def resident_bytes(self, workload: WorkloadName | None = None, gpu: Gpu | None = None) -> int:
        """Bytes of all extents, or of one workload's, or one GPU's."""
        return self._registry.resident_bytes(workload, gpu)

    # -- requests, in the listener's thread ----------------------------------------------------------------------

    def _serve(self, request: Request) -> None:
        message = request.message
        try:
            if message.answer:
                raise BadInput("an answer where a request was expected")
            match message.type:
                case Type.HELLO:
                    self._hello(request)
                case Type.ALLOCATE:
                    self._allocate(request)
                case Type.FREE:
                    self._free(request)
                case Type.WAIT:
                    self._wait(request)
                case _:
                    raise BadInput(f"{message.type.name} is no request to the agent")
        except BadInput as e:
            request.answer(Message(message.type, answer=True, status=Status.BAD_REQUEST, reason=str(e)))
        except KybernateError as e:
            log.warning("request %s of workload %s failed: %s", message.type.name, request.peer.workload, e)
            request.answer(Message(message.type, answer=True, status=Status.FAILED, reason=str(e)))

    def _hello(self, request: Request) -> None:
        peer, inside = request.peer, request.message.argument
        if not 0 < inside < 1 << 31:
            raise BadInput(f"{inside} is no process id")
        # A process says it once: if it has memory, that was its predecessor's, which became this program by an exec.
        self.drop(self.extents(peer.workload, peer.pid))
        self._admission.hello(workload=peer.workload, pid=peer.pid, pid_inside=inside)
        request.answer(Message(Type.HELLO, answer=True))

    def _allocate(self, request: Request) -> None:
        message, peer = request.message, request.peer
        gpu, size = self._wanted(message)
        match self._admission.may_allocate(workload=peer.workload, gpu=gpu, size=size):
            case Verdict.WAIT:
                request.answer(Message(Type.ALLOCATE, answer=True, status=Status.WAIT_FIRST, reason="no room now"))
                return
            case Verdict.NEVER:
                reason = f"{size} bytes are more than workload {peer.workload} can ever have on GPU {gpu.index}"
                request.answer(Message(Type.ALLOCATE, answer=True, status=Status.OUT_OF_MEMORY, reason=reason))
                return
            case Verdict.GRANT:
                pass
        sizes = [size] if message.flags & Flag.SINGLE else split_size(size, self._extent_bytes)
        rdma = bool(message.flags & Flag.RDMA)
        try:
            extents = self.create(workload=peer.workload, pid=peer.pid, gpu=gpu, sizes=sizes, rdma=rdma)
        except NoRoom as e:
            # Memory that isn't ours to account for (other programs' and contexts) is in the way.
            self._short_of_promise[peer] += 1
            short = self._short_of_promise[peer] < _SHORT_OF_PROMISE_MAX
            status = Status.WAIT_FIRST if short else Status.OUT_OF_MEMORY
            request.answer(Message(Type.ALLOCATE, answer=True, status=status, reason=str(e)))
            return
        self._short_of_promise.pop(peer, None)
        self._hand_over(request, extents)

    def _hand_over(self, request: Request, extents: list[Extent]) -> None:
        """Answer with records and descriptors; the memory is dropped again unless the peer takes the answer."""
        fds: list[int] = []
        try:
            fds.extend(self.export(extent) for extent in extents)
            start, answers = 0, []
            for records, more in wire.split([record_of(extent) for extent in extents]):
                flags = Flag.MORE if more else Flag.NONE
                answers.append(
                    (
                        Message(Type.ALLOCATE, answer=True, flags=flags, records=records),
                        fds[start : start + len(records)],
                    )
                )
                start += len(records)
            request.answer_all(answers, untaken=lambda: self._undo(extents))
        except BaseException:
            self._undo(extents)
            raise
        finally:
            close_all(fds)

    def _undo(self, extents: list[Extent]) -> None:
        try:
            self.drop(extents)
        except KybernateError as e:
            log.warning("memory of a peer that hung up: %s", e)

    def _free(self, request: Request) -> None:
        peer = request.peer
        found = self._registry.find(peer.workload, [record.id for record in request.message.records])
        extents = [e for e in found if e is not None and e.pid == peer.pid]
        if len(extents) != len(found):
            raise BadInput(f"process {peer.pid} of workload {peer.workload} frees an extent that isn't its own")
        self.drop(extents)
        self._short_of_promise.pop(peer, None)
        request.answer(Message(Type.FREE, answer=True))

    def _wait(self, request: Request) -> None:
        gpu, size = self._wanted(request.message)
        if not self._waits.begin(request):
            reason = "too many requests wait for GPU memory already"
            request.answer(Message(Type.WAIT, answer=True, status=Status.OUT_OF_MEMORY, reason=reason))
            return
        request.defer()
        threading.Thread(
            target=self._wait_for_room,
            args=(request, gpu, size),
            name=f"kybernate-wait-{request.peer.pid}",
            daemon=True,
        ).start()

    def _wait_for_room(self, request: Request, gpu: Gpu, size: int) -> None:
        answer = Message(Type.WAIT, answer=True)
        try:
            if not self._admission.make_room(workload=request.peer.workload, gpu=gpu, size=size):
                reason = f"no room for {size} bytes on GPU {gpu.index} can be made"
                answer = Message(Type.WAIT, answer=True, status=Status.OUT_OF_MEMORY, reason=reason)
        except KybernateError as e:
            answer = Message(Type.WAIT, answer=True, status=Status.OUT_OF_MEMORY, reason=str(e))
        except Exception:
            log.exception("making room for workload %s failed", request.peer.workload)
            answer = Message(
                Type.WAIT, answer=True, status=Status.FAILED, reason="the agent failed to make room; see its log"
            )
        finally:
            if self._waits.end(request):
                request.answer(answer)

    def dismiss(self, workload: WorkloadName) -> None:
        """Let whoever waits for room ask again, and hang up: its gates are closed, so it does when they open."""
        for request in self._waits.take(workload):
            request.answer(Message(Type.WAIT, answer=True))

    def _wanted(self, message: Message) -> tuple[Gpu, int]:
        gpu = self._gpus.get(message.gpu)
        if gpu is None:
            raise BadInput(f"no GPU {message.gpu.hex()} here")
        check_size(message.argument, gpu)
        return gpu, message.argument


def record_of(extent: Extent) -> Record:
    """The extent as it goes over the wire."""
    flags = Flag.RDMA if extent.rdma else Flag.NONE
    return Record(id=extent.id, address=0, size=extent.size, gpu=extent.gpu.uuid_bytes, flags=flags)


def split_size(size: int, longest: int) -> list[int]:
    """Extents for an allocation: as long as allowed, the rest last."""
    whole, rest = divmod(size, longest)
    return [longest] * whole + ([rest] if rest else [])
