"""The listening sockets of all workloads, one thread that accepts and receives, and each request's answer.

A connection carries one request. Its life: OPEN until a packet came, perhaps DEFERRED (a thread of somebody's answers), then
ANSWERED until the peer hangs up, where the answer gives something away: a peer that hangs up with it unread is noticed by the
kernel's ECONNRESET, and whoever gave is told (`untaken`). After any other answer it is closed at once.

Limits: silent connections are closed after some seconds, the oldest first when there are too many; a peer that doesn't read
its answer loses it, so the thread never blocks.
"""

from __future__ import annotations

import enum
import errno
import logging
import os
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kybernate.cuda import packets
from kybernate.cuda.wire import Message, Status, Type
from kybernate.model.errors import BadInput, KybernateError
from kybernate.model.types import HostPid, WorkloadName

log = logging.getLogger(__name__)

_CREDENTIALS = struct.Struct("3i")
_BACKLOG = 128
_SILENCE_S = 10.0
"""A connection that has sent nothing, or not hung up after its answer, is closed then."""
_CONNECTIONS_MAX = 512
"""Of one workload; the kernel's queue holds back the others."""
_OUT_OF_DESCRIPTORS_S = 0.05
_SEND_BYTES = 4 << 20
"""Socket buffer: the answer to an allocation of all of a large GPU's memory fits with room to spare."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Who asks: the process as the kernel names it."""

    workload: WorkloadName
    pid: HostPid


class _State(enum.Enum):
    OPEN = "open"
    DEFERRED = "deferred"
    ANSWERED = "answered"
    CLOSED = "closed"


@dataclass(slots=True, eq=False)
class _Connection:
    socket: socket.socket
    peer: Peer
    state: _State
    since: float
    untaken: Callable[[], None] | None = None
    watched: bool = False
    """The selector has it. Most requests are there on arrival and answered at once, and never need that."""


@dataclass(slots=True, eq=False)
class _Endpoint:
    workload: WorkloadName
    listener: socket.socket
    path: Path
    inode: int
    connections: set[_Connection]


class Request:
    """One request and the way to answer it, once."""

    def __init__(self, *, message: Message, connection: _Connection, listener: RequestListener) -> None:
        self.message = message
        self.peer = connection.peer
        self._connection = connection
        self._listener = listener

    def answer(self, message: Message) -> None:
        """Send an answer without descriptors. A peer that is gone is fine."""
        self.answer_all([(message, ())], untaken=None)

    def answer_all(
        self, answers: Sequence[tuple[Message, Sequence[int]]], *, untaken: Callable[[], None] | None
    ) -> None:
        """Send all packets of an answer; `untaken` is called, now or later, if the peer doesn't take them all."""
        self._listener.answer(self._connection, answers, untaken)

    def defer(self) -> None:
        """The answer will come from another thread."""
        self._listener.defer(self._connection)


class RequestListener:
    """See the module; an endpoint is one workload's socket.

    `serve` is called in the listener's thread for each request and must not block.
    """

    def __init__(self, serve: Callable[[Request], None]) -> None:
        self._serve = serve
        self._lock = threading.RLock()
        self._endpoints: dict[WorkloadName, _Endpoint] = {}
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._shut = False
        self._thread = threading.Thread(target=self._run, name="kybernate-broker", daemon=True)
        self._thread.start()

    def open(self, workload: WorkloadName, path: Path, *, uid: int, gid: int) -> None:
        """Raises KybernateError when the socket can't be made; replaces an open one and a stale one."""
        self.close(workload)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        directory = -1
        try:
            directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            with suppress(FileNotFoundError):
                os.unlink(path.name, dir_fd=directory)
            # By the directory's descriptor: no limit of 107 bytes for the path, and no other directory slipped in.
            listener.bind(f"/proc/self/fd/{directory}/{path.name}")
            os.chmod(path.name, 0o600, dir_fd=directory)
            if (uid, gid) != (os.geteuid(), os.getegid()):
                os.chown(path.name, uid, gid, dir_fd=directory, follow_symlinks=False)
            inode = os.stat(path.name, dir_fd=directory, follow_symlinks=False).st_ino
            listener.listen(_BACKLOG)
        except OSError as e:
            listener.close()
            raise KybernateError(f"can't listen at {path} for workload {workload}: {e.strerror or e}") from e
        finally:
            if directory >= 0:
                os.close(directory)
        with self._lock:
            endpoint = _Endpoint(workload, listener, path, inode, set())
            self._endpoints[workload] = endpoint
            self._selector.register(listener, selectors.EVENT_READ, endpoint)
        self._wake()

    def close(self, workload: WorkloadName) -> None:
        with self._lock:
            endpoint = self._endpoints.pop(workload, None)
            if endpoint is None:
                return
            self._unregister(endpoint.listener)
            endpoint.listener.close()
            with suppress(OSError):
                if endpoint.path.stat(follow_symlinks=False).st_ino == endpoint.inode:
                    endpoint.path.unlink()
            for connection in list(endpoint.connections):
                # A deferred one is answered by its thread later and then finds itself closed.
                self._end(connection, endpoint)
        self._wake()

    def shut(self) -> None:
        """Close all sockets and end the thread. May be called twice."""
        for workload in list(self._endpoints):
            self.close(workload)
        with self._lock:
            if self._shut:
                return
            self._shut = True
        self._wake()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def answer(
        self,
        connection: _Connection,
        answers: Sequence[tuple[Message, Sequence[int]]],
        untaken: Callable[[], None] | None,
    ) -> None:
        with self._lock:
            failed = connection.state is _State.CLOSED
            if not failed:
                try:
                    if len(answers) > 1:
                        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BYTES)
                    for message, fds in answers:
                        packets.send(connection.socket, message, fds)
                    connection.state = _State.ANSWERED
                    connection.since = time.monotonic()
                    connection.untaken = untaken
                    if untaken is None:
                        self._finish(connection)
                    else:
                        self._watch(connection)
                except OSError as e:  # hung up, or a buffer full of what it doesn't read
                    log.info("workload %s, process %d didn't take its answer: %s", *_who(connection.peer), e)
                    failed = True
        if failed:
            if untaken is not None:
                untaken()
            self._finish(connection)

    def defer(self, connection: _Connection) -> None:
        """Its answer will come from another thread; until then only its hanging up matters."""
        with self._lock:
            if connection.state is _State.OPEN:
                connection.state = _State.DEFERRED
                self._watch(connection)

    # -- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            events = self._selector.select(timeout=_SILENCE_S / 2)
            if self._shut:
                break
            for key, _ in events:
                try:
                    if isinstance(key.data, _Endpoint):
                        self._accept(key.data)
                    elif isinstance(key.data, _Connection):
                        self._receive(key.data)
                    else:
                        with suppress(BlockingIOError):
                            os.read(self._wake_read, 4096)
                except Exception:
                    log.exception("a request to the broker failed")
                    if isinstance(key.data, _Connection):
                        self._finish(key.data)
            self._sweep()
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _accept(self, endpoint: _Endpoint) -> None:
        try:
            accepted, _ = endpoint.listener.accept()
        except OSError as e:
            if e.errno in (errno.EMFILE, errno.ENFILE):  # it stays readable: don't spin until there is one again
                log.warning("no descriptor left for a request of workload %s", endpoint.workload)
                time.sleep(_OUT_OF_DESCRIPTORS_S)
            return  # or gone again, or the socket was closed meanwhile
        accepted.setblocking(False)
        pid, _, _ = _CREDENTIALS.unpack(accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        with self._lock:
            if self._endpoints.get(endpoint.workload) is not endpoint:
                accepted.close()
                return
            if len(endpoint.connections) >= _CONNECTIONS_MAX:
                silent = min(
                    (c for c in endpoint.connections if c.state is not _State.DEFERRED),
                    key=lambda c: c.since,
                    default=None,
                )
                if silent is None:
                    accepted.close()
                    return
                self._end(silent, endpoint)
            connection = _Connection(accepted, Peer(endpoint.workload, HostPid(pid)), _State.OPEN, time.monotonic())
            endpoint.connections.add(connection)
        self._receive(connection)  # its request is often there already

    def _receive(self, connection: _Connection) -> None:
        with self._lock:
            if connection.state is _State.CLOSED:
                return
            lost = None
            try:
                came = packets.receive(connection.socket)
            except (BlockingIOError, InterruptedError):
                self._watch(connection)
                return
            except BadInput as e:
                self._refuse(connection, str(e))
                return
            except OSError as e:
                came = None
                if isinstance(e, ConnectionResetError):  # hung up with the answer, or some of it, unread
                    lost = connection.untaken
        if came is None:
            self._finish(connection)
            if lost is not None:
                log.info(
                    "workload %s, process %d hung up on its answer; its memory is taken back", *_who(connection.peer)
                )
                lost()
            return
        message, fds = came
        packets.close_all(fds)  # no request brings any
        if connection.state is not _State.OPEN:
            self._finish(connection)  # one request a connection
            return
        self._serve(Request(message=message, connection=connection, listener=self))

    def _refuse(self, connection: _Connection, why: str) -> None:
        with suppress(OSError):
            packets.send(connection.socket, Message(Type.HELLO, answer=True, status=Status.BAD_REQUEST, reason=why))
        self._finish(connection)

    def _sweep(self) -> None:
        limit = time.monotonic() - _SILENCE_S
        with self._lock:
            for endpoint in self._endpoints.values():
                for connection in [
                    c for c in endpoint.connections if c.state is not _State.DEFERRED and c.since < limit
                ]:
                    self._end(connection, endpoint)

    def _finish(self, connection: _Connection) -> None:
        with self._lock:
            self._end(connection, self._endpoints.get(connection.peer.workload))

    def _end(self, connection: _Connection, endpoint: _Endpoint | None) -> None:
        if endpoint is not None:
            endpoint.connections.discard(connection)
        if connection.state is _State.CLOSED:
            return
        connection.state = _State.CLOSED
        if connection.watched:
            self._unregister(connection.socket)
        connection.socket.close()

    def _watch(self, connection: _Connection) -> None:
        if not connection.watched:
            connection.watched = True
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)

    def _unregister(self, subject: socket.socket) -> None:
        with suppress(KeyError, ValueError):
            self._selector.unregister(subject)

    def _wake(self) -> None:
        with suppress(OSError):
            os.write(self._wake_write, b"x")


def _who(peer: Peer) -> tuple[WorkloadName, HostPid]:
    return peer.workload, peer.pid
