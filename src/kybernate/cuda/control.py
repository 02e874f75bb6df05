"""The agent's end of a process's control socket: the words that make a process quiet, take its memory and give it back.

One connection is one operation (a pause, a resume). Should it break, the process undoes what can be undone (protocol.h), so
that a `Control` that is closed early, or an agent that dies, leaves the workload running as long as nothing was discarded.

Limits: one thread at a time; the path must be reachable from the agent's own mount namespace.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from kybernate.cuda import packets, wire
from kybernate.cuda.wire import Flag, Message, Record, Type
from kybernate.model.errors import BadInput, Busy, KybernateError, NoRoom, Unsupported, WorkloadLost
from kybernate.model.types import ExtentId

_PATH_MAX = 107
"""Bytes of a Unix socket's path; a longer one is reached through its directory's descriptor."""
_SLACK_S = 10.0
"""Longer than the process's own time limit, so that it is the process that says no."""


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    state: wire.ProcessState
    committed: bool
    """Its content is with the agent: the process waits for MAP and never goes back by itself."""
    partial: bool
    """Some of its extents are discarded, not all."""
    unsupported: str
    """Why this process can't be paused; empty when it can."""


class Control:
    """A connection to one process, open after `with`. `timeout_s` bounds each single answer."""

    def __init__(self, path: Path, *, timeout_s: float = 30.0) -> None:
        self._path = path
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
                f"no process answers on {self._path}: {e.strerror or e}",
                hint="it ended, or runs without the preload library",
            ) from e
        self._socket = connection

    def close(self) -> None:
        """Hang up; what that undoes, protocol.h says. May be called twice."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def status(self) -> ProcessStatus:
        answer = self._ask(Message(Type.STATUS))[0]
        return ProcessStatus(
            _state(answer), bool(answer.flags & Flag.COMMITTED), bool(answer.flags & Flag.PARTIAL), answer.reason
        )

    def quiesce(self, timeout_s: float) -> list[Record]:
        """Close the gates and wait until the GPU is idle; all extents as the process knows them.

        Raises:
            Busy, Unsupported: why not; the process runs on.
        """
        milliseconds = max(1, round(timeout_s * 1000))
        return self._records(self._ask(Message(Type.QUIESCE, argument=milliseconds), wait_s=timeout_s + _SLACK_S))

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

    def extents(self) -> list[tuple[Record, int | None]]:
        """Every extent with a descriptor of its own, which the caller closes; None where it was discarded."""
        pairs: list[tuple[Record, int | None]] = []
        try:
            answers = self._ask(Message(Type.EXTENTS), pairs=pairs)
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
    ) -> list[Message]:
        """Send and receive until the last packet of the answer. Descriptors go into `pairs`, or are closed."""
        connection = self._socket
        if connection is None:
            raise ValueError("the control connection isn't open")
        what = request.type.name
        connection.settimeout(wait_s or self._timeout_s)
        answers: list[Message] = []
        try:
            packets.send(connection, request, fds)
            while True:
                came = packets.receive(connection)
                if came is None:
                    raise WorkloadLost(f"the process at {self._path} hung up while asked to {what}", hint="see its log")
                message, received = came
                if pairs is None:
                    packets.close_all(received)
                else:
                    self._pair(message, received, pairs)
                self._check(request, message)
                answers.append(message)
                if not message.more:
                    return answers
        except TimeoutError as e:
            self.close()  # its late answer must not be taken for another question's
            raise Busy(
                f"the process at {self._path} gave no answer to {what} within {wait_s or self._timeout_s:g} s"
            ) from e
        except OSError as e:
            self.close()
            raise WorkloadLost(f"the process at {self._path} is gone ({e.strerror or e}) while asked to {what}") from e
        except BadInput as e:
            self.close()
            raise KybernateError(f"the process at {self._path} answered {what} with garbage: {e}") from e

    def _check(self, request: Message, answer: Message) -> None:
        if not answer.answer or answer.type is not request.type:
            raise BadInput(f"answer to {answer.type.name} instead of {request.type.name}")
        if answer.status is wire.Status.OK:
            return
        text = f"process at {self._path}, {request.type.name}: {answer.reason or answer.status.name}"
        match answer.status:
            case wire.Status.BUSY:
                raise Busy(text)
            case wire.Status.UNSUPPORTED:
                raise Unsupported(text)
            case wire.Status.OUT_OF_MEMORY:
                raise NoRoom(text)
            case _:
                raise KybernateError(text)

    @staticmethod
    def _pair(message: Message, fds: list[int], pairs: list[tuple[Record, int | None]]) -> None:
        with_fd = [record for record in message.records if not record.flags & Flag.NO_FD]
        if len(with_fd) != len(fds):
            packets.close_all(fds)
            raise BadInput(f"{len(with_fd)} extents with {len(fds)} descriptors")
        remaining = iter(fds)
        pairs.extend((record, None if record.flags & Flag.NO_FD else next(remaining)) for record in message.records)

    @staticmethod
    def _records(answers: Sequence[Message]) -> list[Record]:
        return [record for answer in answers for record in answer.records]


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
