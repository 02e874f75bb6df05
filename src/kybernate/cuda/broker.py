"""The broker: creates all extents, keeps account of them, and answers the workloads' requests for memory at their doors.

A door is a listening socket in a workload's run directory. Its requests are trusted only within its own workload: the peer's
pid comes from the kernel, ids must be that process's own, sizes are checked. One thread serves all doors; it does nothing
that may block. A request that has to wait (WAIT) gets a thread of its own.

Memory is the peer's once it has read the answer: a peer that hangs up with the answer unread has the memory taken back. What
a process holds when it dies is the caller's to drop (`drop(extents(workload, pid))`).

Limits: the admission decides who may have memory; the broker only knows what is resident. Doors are served from `open_door`
on, so the admission must be ready by then.
"""

from __future__ import annotations

import enum
import itertools
import logging
import os
import secrets
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from kybernate.cuda import wire
from kybernate.cuda.driver import CudaError, Gpu
from kybernate.cuda.extents import Extent, ExtentSpace, Piece
from kybernate.cuda.listener import Doors, Peer, Request
from kybernate.cuda.packets import close_all
from kybernate.cuda.wire import Flag, Message, Record, Status, Type
from kybernate.model.errors import BadInput, Conflict, KybernateError, NoRoom
from kybernate.model.types import CHUNK_BYTES, GIB, MIB, ExtentId, GpuUuid, HostPid, WorkloadName

log = logging.getLogger(__name__)

_WAITS_MAX = 1024
"""Requests waiting for room at once, each a thread."""
_WAITS_OF_ONE_MAX = 128
"""Likewise of one workload, so that none can take them all from the others."""
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
        self._spaces = {gpu.uuid: ExtentSpace(gpu) for gpu in gpus}
        self._lock = threading.Lock()
        # By workload too: an id that a workload makes up can't stand in another's way.
        self._extents: dict[tuple[WorkloadName, ExtentId], Extent] = {}
        # Kept beside, since every request asks for the sums and a workload may have ten thousands of extents.
        self._resident: Counter[tuple[WorkloadName, GpuUuid]] = Counter()
        generation = secrets.randbits(31) << 32
        self._ids = (ExtentId(generation | number) for number in itertools.count(1))
        self._short_of_promise: dict[tuple[WorkloadName, HostPid], int] = {}
        self._waits: Counter[WorkloadName] = Counter()
        self._waiting: set[Request] = set()
        """Of those, the ones without an answer."""
        self._doors = Doors(self._serve)

    # -- doors ---------------------------------------------------------------------------------------------------

    def open_door(self, workload: WorkloadName, path: Path, *, uid: int, gid: int) -> None:
        """Listen at `path` for one workload; only `uid` (and root) can connect. A stale socket there is replaced.

        Raises:
            KybernateError: the socket can't be made.
        """
        self._doors.open(workload, path, uid=uid, gid=gid)

    def close_door(self, workload: WorkloadName) -> None:
        """Stop listening and remove the socket. A door that isn't open is fine."""
        self._doors.close(workload)

    def close(self) -> None:
        """Close all doors and end the broker's thread. Extents stay: dropping them is a decision of its own."""
        self._doors.shut()

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
        """New, zeroed extents in the given sizes (bytes), all or none. No admission is asked: that is the caller's business.

        `ids` names the places they are for, when a process that was paused gets its memory again.

        Raises:
            NoRoom: the GPU's free memory doesn't do.
            Conflict: a place of `ids` has its memory already.
            CudaError: the driver failed otherwise.
        """
        space = self._spaces[gpu.uuid]
        with self._lock:
            if ids is not None and (there := self._extents.keys() & {(workload, i) for i in ids}):
                raise Conflict(f"{len(there)} extents of workload {workload} are in VRAM already")
        pieces = space.create(sizes, rdma=rdma)
        with self._lock:
            names = ids if ids is not None else self._new_ids(workload, len(pieces))
            extents = [
                self._extent(name, piece, workload=workload, pid=pid, space=space, rdma=rdma)
                for name, piece in zip(names, pieces, strict=True)
            ]
            for extent in extents:
                self._add(extent)
        return extents

    def _add(self, extent: Extent) -> None:
        if (before := self._extents.get(_key(extent))) is not None:
            self._remove(before)
        self._extents[_key(extent)] = extent
        self._resident[extent.workload, extent.gpu.uuid] += extent.size

    def _remove(self, extent: Extent) -> None:
        del self._extents[_key(extent)]
        holding = (extent.workload, extent.gpu.uuid)
        self._resident[holding] -= extent.size
        if not self._resident[holding]:
            del self._resident[holding]

    def _new_ids(self, workload: WorkloadName, count: int) -> list[ExtentId]:
        """Past those that the workload claims already, by whatever means."""
        unused = (i for i in self._ids if (workload, i) not in self._extents)
        return list(itertools.islice(unused, count))

    def export(self, extent: Extent) -> int:
        """A new descriptor of the extent's memory; the caller closes it."""
        return self._space(extent).export(extent)

    def adopt(self, *, workload: WorkloadName, pid: HostPid, gpu: Gpu, record: Record, fd: int) -> Extent:
        """Take an extent back into account from a workload's descriptor: after a restart, or when a pause is undone.

        The descriptor stays the caller's. An extent that is known already is handed back as it is.

        Raises:
            BadInput: the record makes no sense, or the descriptor isn't that memory.
            Conflict: the id belongs to another process.
        """
        self._check_size(record.size, gpu)
        with self._lock:
            known = self._extents.get((workload, record.id))
        if known is not None:
            if (known.pid, known.size, known.gpu) != (pid, record.size, gpu):
                raise Conflict(
                    f"process {pid} of workload {workload} claims extent {record.id:#x} of process {known.pid}"
                )
            return known
        space = self._spaces[gpu.uuid]
        copy = -1
        try:
            copy = _duplicate(fd)
            piece = space.adopt(fd, record.size)
        except CudaError as e:
            close_all([copy])
            raise BadInput(
                f"extent {record.id:#x} of workload {workload}: its descriptor isn't that memory ({e.message})"
            ) from e
        except BaseException:
            close_all([copy])
            raise
        rdma = bool(record.flags & Flag.RDMA)
        extent = self._extent(record.id, piece, workload=workload, pid=pid, space=space, rdma=rdma)
        extent.fd = copy
        with self._lock:
            self._add(extent)
        return extent

    def drop(self, extents: Iterable[Extent]) -> None:
        """Unmap, release, forget. Those gone already are skipped; those being copied go when the copy ends.

        Raises:
            CudaError: the driver failed; all are forgotten all the same.
        """
        by_space: dict[int, tuple[ExtentSpace, list[Extent]]] = {}
        with self._lock:
            for extent in extents:
                if self._extents.get(_key(extent)) is extent:
                    self._remove(extent)
                space = self._space(extent)
                by_space.setdefault(id(space), (space, []))[1].append(extent)
        for space, mine in by_space.values():
            space.destroy(mine)

    def extents(self, workload: WorkloadName, pid: HostPid | None = None) -> list[Extent]:
        """A workload's (process's) extents, in the order they were made."""
        with self._lock:
            return [e for e in self._extents.values() if e.workload == workload and (pid is None or e.pid == pid)]

    def resident_bytes(self, workload: WorkloadName | None = None, gpu: Gpu | None = None) -> int:
        """Bytes of all extents, or of one workload's, or one GPU's."""
        with self._lock:
            return sum(
                size
                for (holder, uuid), size in self._resident.items()
                if (workload is None or holder == workload) and (gpu is None or uuid == gpu.uuid)
            )

    # -- requests, in the doors' thread --------------------------------------------------------------------------

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
            status = Status.WAIT_FIRST if self._count_short(peer) < _SHORT_OF_PROMISE_MAX else Status.OUT_OF_MEMORY
            request.answer(Message(Type.ALLOCATE, answer=True, status=status, reason=str(e)))
            return
        self._forget_short(peer)
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
        with self._lock:
            found = [self._extents.get((peer.workload, record.id)) for record in request.message.records]
        extents = [e for e in found if e is not None and e.pid == peer.pid]
        if len(extents) != len(found):
            raise BadInput(f"process {peer.pid} of workload {peer.workload} frees an extent that isn't its own")
        self.drop(extents)
        self._forget_short(peer)
        request.answer(Message(Type.FREE, answer=True))

    def _wait(self, request: Request) -> None:
        gpu, size = self._wanted(request.message)
        if not self._begin_wait(request):
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
            if self._end_wait(request):
                request.answer(answer)

    def dismiss(self, workload: WorkloadName) -> None:
        """Let whoever waits for room ask again, and hang up: its gates are closed, so it does when they open."""
        with self._lock:
            waiting = {request for request in self._waiting if request.peer.workload == workload}
            self._waiting -= waiting
        for request in waiting:
            request.answer(Message(Type.WAIT, answer=True))

    def _begin_wait(self, request: Request) -> bool:
        workload = request.peer.workload
        with self._lock:
            if self._waits.total() >= _WAITS_MAX or self._waits[workload] >= _WAITS_OF_ONE_MAX:
                return False
            self._waits[workload] += 1
            self._waiting.add(request)
            return True

    def _end_wait(self, request: Request) -> bool:
        """Whether it still wants its answer."""
        workload = request.peer.workload
        with self._lock:
            self._waits[workload] -= 1
            if not self._waits[workload]:
                del self._waits[workload]
            wanted = request in self._waiting
            self._waiting.discard(request)
            return wanted

    # -- helpers -------------------------------------------------------------------------------------------------

    def _wanted(self, message: Message) -> tuple[Gpu, int]:
        gpu = self._gpus.get(message.gpu)
        if gpu is None:
            raise BadInput(f"no GPU {message.gpu.hex()} here")
        self._check_size(message.argument, gpu)
        return gpu, message.argument

    @staticmethod
    def _check_size(size: int, gpu: Gpu) -> None:
        if size <= 0 or size % CHUNK_BYTES or size > gpu.total_bytes:
            raise BadInput(
                f"{size} bytes: not a multiple of {CHUNK_BYTES} from 1 to GPU {gpu.index}'s {gpu.total_bytes}"
            )

    def _extent(
        self, number: ExtentId, piece: Piece, *, workload: WorkloadName, pid: HostPid, space: ExtentSpace, rdma: bool
    ) -> Extent:
        return Extent(
            id=number,
            workload=workload,
            pid=pid,
            gpu=space.gpu,
            size=piece.size,
            handle=piece.handle,
            device_pointer=piece.device_pointer,
            rdma=rdma,
            space=space,
        )

    def _space(self, extent: Extent) -> ExtentSpace:
        return self._spaces[extent.gpu.uuid]

    def _count_short(self, peer: Peer) -> int:
        key = (peer.workload, peer.pid)
        self._short_of_promise[key] = self._short_of_promise.get(key, 0) + 1
        return self._short_of_promise[key]

    def _forget_short(self, peer: Peer) -> None:
        self._short_of_promise.pop((peer.workload, peer.pid), None)


def _key(extent: Extent) -> tuple[WorkloadName, ExtentId]:
    return extent.workload, extent.id


def record_of(extent: Extent) -> Record:
    """The extent as it goes over the wire."""
    flags = Flag.RDMA if extent.rdma else Flag.NONE
    return Record(id=extent.id, address=0, size=extent.size, gpu=extent.gpu.uuid_bytes, flags=flags)


def split_size(size: int, longest: int) -> list[int]:
    """Extents for an allocation: as long as allowed, the rest last."""
    whole, rest = divmod(size, longest)
    return [longest] * whole + ([rest] if rest else [])


def _duplicate(fd: int) -> int:
    try:
        return os.dup(fd)
    except OSError as e:
        raise BadInput(f"descriptor {fd} isn't open: {e.strerror}") from e
