"""The agent's end of a process's control socket: the words that make a process quiet, take its memory and give it back.

One connection is one operation (a pause, a resume). Should it break, the process undoes what can be undone (protocol.h), so
that a `Control` that is closed early, or an agent that dies, leaves the workload running as long as nothing was discarded.

The process is not trusted: its socket lies where its own user may write, and what listens there may be anything. So the
kernel is asked which process listens, and an answer has an end: in records, and in time.

Limits: one thread at a time; the path must be reachable from the agent's own mount namespace.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from kybernate.cuda import packets, wire
from kybernate.cuda.wire import Flag, Message, Record, Type
from kybernate.model.errors import BadInput, Busy, KybernateError, NoRoom, Unsupported, WorkloadLost
from kybernate.model.types import ExtentId, HostPid

_PATH_MAX = 107
"""Bytes of a Unix socket's path; a longer one is reached through its directory's descriptor."""
_SLACK_S = 10.0
"""Longer than the process's own time limit, so that it is the process that says no."""
_HANG_UP_S = 1.0
_MOST_RECORDS = 1 << 20
"""2 TiB in chunks: more extents than that no process has."""
_CREDENTIALS = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    state: wire.ProcessState
    committed: bool
    """Its content is with the agent: the process waits for MAP and never goes back by itself."""
    partial: bool
    """Some of its extents are discarded, not all."""
    unsupported: str
    """Why this process can't be paused; empty when it can."""


@dataclass(frozen=True, slots=True)
class HoldStatus:
    """How a process stands whose launches are held."""

    idle: bool
    """The GPU has finished what it was given."""
    reason: str
    """Why not; empty when it is idle."""


class Control:
    """A connection to one process, open after `with`. `timeout_s` bounds each single answer.

    With `pid` only that very process is talked to.
    """

    def __init__(self, path: Path, *, timeout_s: float = 30.0, pid: HostPid | None = None) -> None:
        self._path = path
        self._pid = pid
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def connect(self) -> None:
        """Raises WorkloadLost when no process answers there."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        connection.settimeout(self._timeout_s)
        try:
            _connect(connection, self._path)
        except OSError as e:
            connection.close()
            raise WorkloadLost(
                f"{self._who} does not answer: {e.strerror or e}",
                hint="it ended, or runs without the preload library",
            ) from e
        if self._pid is not None and (listens := _listener(connection)) != self._pid:
            connection.close()
            raise WorkloadLost(f"process {listens} answers in place of process {self._pid}")
        self._socket = connection

    @property
    def _who(self) -> str:
        """As people know it; where its socket lies means nothing to them."""
        return "the process" if self._pid is None else f"process {self._pid}"

    def close(self) -> None:
        """Hang up; what that undoes, protocol.h says. May be called twice."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def reopen(self) -> None:
        """Connect anew where a question that failed ended the connection. What that undid, protocol.h says."""
        if self._socket is None:
            self.connect()

    def hang_up(self) -> None:
        """As `close`, but the process has closed its end when this returns, unless it takes a second for it.

        One that is frozen before would keep its end: half a connection, which can't be dumped.
        """
        connection = self._socket
        if connection is not None:
            with contextlib.suppress(OSError):  # a process that ended has closed it
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(_HANG_UP_S)
                while connection.recv(1):
                    pass
        self.close()

    def status(self) -> ProcessStatus:
        answer = self._ask(Message(Type.STATUS))[0]
        return ProcessStatus(
            _state(answer), bool(answer.flags & Flag.COMMITTED), bool(answer.flags & Flag.PARTIAL), answer.reason
        )

    def hold(self, timeout_s: float, *, step: bool = False) -> HoldStatus:
        """Let no kernel launch pass any more and wait a while for the GPU to become idle; with `step`, let one pass first.

        Raises:
            Unsupported: why it can't be paused; the process runs on.
        """
        request = Message(Type.HOLD, flags=Flag.STEP if step else Flag.NONE, argument=max(1, round(timeout_s * 1000)))
        answer = self._ask(request, wait_s=timeout_s + _SLACK_S)[0]
        return HoldStatus(bool(answer.flags & Flag.IDLE), answer.reason)

    def quiesce(self, timeout_s: float) -> list[Record]:
        """Close the gates and wait until the GPU is idle; all extents as the process knows them.

        Raises:
            Busy, Unsupported: why not; the process runs on.
        """
        milliseconds = max(1, round(timeout_s * 1000))
        answers = self._ask(Message(Type.QUIESCE, argument=milliseconds), wait_s=timeout_s + _SLACK_S)
        return [record for answer in answers for record in answer.records]

    def release(self) -> None:
        """Unmap all extents; the process keeps their descriptors."""
        self._ask(Message(Type.RELEASE))

    def discard(self, ids: Sequence[ExtentId] | None = None) -> None:
        """Close the descriptors of these extents, or (None) of all there are: from then on only the agent has the content."""
        if ids is None:
            self._ask(Message(Type.DISCARD))
            return
        records = [Record(id=i, address=0, size=0) for i in ids]
        for part, _ in wire.split(records):
            if part:  # a packet without records would mean all of them
                self._ask(Message(Type.DISCARD, records=part))

    def map(self, records: Sequence[Record], fds: Sequence[int]) -> None:
        """New memory for the records' extents; the descriptors stay the caller's. Afterwards the process is QUIET."""
        if len(records) != len(fds):
            raise ValueError(f"{len(records)} records and {len(fds)} descriptors")
        start = 0
        for part, more in wire.split(records):
            flags = Flag.MORE if more else Flag.NONE
            self._ask(Message(Type.MAP, flags=flags, records=part), fds=fds[start : start + len(part)])
            start += len(part)

    def open(self) -> None:
        """Open the gates: the process runs."""
        self._ask(Message(Type.OPEN))

    def extents(self, *, maximum: int = _MOST_RECORDS) -> list[tuple[Record, int | None]]:
        """Every extent with a descriptor of its own, which the caller closes; None where it was discarded.

        Raises:
            KybernateError: it names more than `maximum`, or one of them twice.
        """
        pairs: list[tuple[Record, int | None]] = []
        try:
            answers = self._ask(Message(Type.EXTENTS), pairs=pairs, maximum=maximum)
        except BaseException:
            packets.close_all(fd for _, fd in pairs if fd is not None)
            raise
        assert answers
        return pairs

    def remap(self) -> None:
        """Map again from the descriptors kept: the undo of `release`."""
        self._ask(Message(Type.REMAP))

    # -- one question --------------------------------------------------------------------------------------------

    def _ask(
        self,
        request: Message,
        *,
        fds: Sequence[int] = (),
        wait_s: float | None = None,
        pairs: list[tuple[Record, int | None]] | None = None,
        maximum: int = _MOST_RECORDS,
    ) -> list[Message]:
        """Send and receive until the last packet of the answer. Descriptors go into `pairs`, or are closed."""
        connection = self._socket
        if connection is None:
            raise KybernateError(f"the connection to {self._who} isn't open", hint="an earlier question failed")
        what = request.type.name.lower()
        connection.settimeout(wait_s or self._timeout_s)
        deadline = time.monotonic() + (wait_s or self._timeout_s)
        answers: list[Message] = []
        seen: set[ExtentId] = set()
        try:
            packets.send(connection, request, fds)
            while True:
                connection.settimeout(max(deadline - time.monotonic(), 0.001))
                came = packets.receive(connection)
                if came is None:
                    raise WorkloadLost(f"{self._who} hung up while asked to {what}", hint="see its log")
                message, received = came
                if pairs is None:
                    packets.close_all(received)
                else:
                    _pair(message, received, pairs)
                self._check(request, message)
                new = {record.id for record in message.records}
                if len(new) != len(message.records) or not new.isdisjoint(seen):
                    raise BadInput("an extent is named twice")
                seen |= new
                if len(seen) > maximum:
                    raise BadInput(f"more than {maximum} extents")
                if message.more and not new:
                    raise BadInput("an empty part of a list")
                answers.append(message)
                if not message.more:
                    return answers
        except TimeoutError as e:
            self.close()  # its late answer must not be taken for another question's
            raise Busy(f"{self._who} gave no answer to {what} within {wait_s or self._timeout_s:g} s") from e
        except OSError as e:
            self.close()
            raise WorkloadLost(f"{self._who} is gone ({e.strerror or e}) while asked to {what}") from e
        except BadInput as e:
            self.close()
            raise KybernateError(f"{self._who} answered {what} with garbage: {e}") from e

    def _check(self, request: Message, answer: Message) -> None:
        if not answer.answer or answer.type is not request.type:
            raise BadInput(f"answer to {answer.type.name} instead of {request.type.name}")
        if answer.status is wire.Status.OK:
            return
        # Why, in the process's own words; what it was asked only where it gives none.
        text = f"{self._who}: {answer.reason or f'{answer.status.name} in answer to {request.type.name}'}"
        match answer.status:
            case wire.Status.BUSY:
                raise Busy(text, hint="it runs on; try again later, or give it a longer --timeout")
            case wire.Status.UNSUPPORTED:
                raise Unsupported(text, hint="it runs on; see its limits in docs/compatibility.md")
            case wire.Status.OUT_OF_MEMORY:
                raise NoRoom(text)
            case _:
                raise KybernateError(text)


def _pair(message: Message, fds: list[int], pairs: list[tuple[Record, int | None]]) -> None:
    """Each record with its descriptor."""
    with_fd = [record for record in message.records if not record.flags & Flag.NO_FD]
    if len(with_fd) != len(fds):
        packets.close_all(fds)
        raise BadInput(f"{len(with_fd)} extents with {len(fds)} descriptors")
    remaining = iter(fds)
    pairs.extend((record, None if record.flags & Flag.NO_FD else next(remaining)) for record in message.records)


def _listener(connection: socket.socket) -> int:
    """The process that listens where we connected to, by the kernel's word."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(raw)[0])


def _state(answer: Message) -> wire.ProcessState:
    try:
        return wire.ProcessState(answer.argument)
    except ValueError as e:
        raise KybernateError(f"a process says it is in state {answer.argument}, which doesn't exist") from e


def _connect(connection: socket.socket, path: Path) -> None:
    if len(os.fsencode(path)) <= _PATH_MAX:
        connection.connect(os.fspath(path))
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        connection.connect(f"/proc/self/fd/{directory}/{path.name}")
    finally:
        os.close(directory)
