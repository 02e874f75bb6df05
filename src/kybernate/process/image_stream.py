"""CRIU's images through pipes instead of files: `--stream`, the protocol of criu-image-streamer (criu/img-streamer.c).

CRIU connects to a Unix socket in its directory of images. For each image it sends the name (four bytes of length, and a
protobuf message whose field 1 it is); on a restore it hears whether there is one (a message whose field 1 says so); then it
makes a pipe, and sends the end that it doesn't need. On errors there are no words: pipes are closed.

The sockets lie where only root comes. A client is told here, too: who saves and lays archives beside CRIU. Imported by the
supervisor, when it has need of it: nothing but the standard library.
"""

from __future__ import annotations

import array
import contextlib
import io
import os
import re
import socket
import struct
from pathlib import Path

CAPTURE, SERVE = "streamer-capture.sock", "streamer-serve.sock"
"""Of a dump, of a restore; CRIU's own names."""
LAST = "stop-listener"
"""CRIU's last request."""
PIPE_BYTES = 1 << 20
"""What anybody may ask for, unless the administrator has said otherwise."""
_TIMEOUT_S = 60.0
"""For the second half of a request: CRIU sends it at once."""
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,200}")
_F_SETPIPE_SZ = 1031


class StreamBroken(OSError):
    """The other end has gone, or speaks something else."""


def listen(directory: Path, name: str) -> socket.socket:
    """A socket of that name in a directory, however long its path. Raises OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        number = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            listener.bind(f"/proc/self/fd/{number}/{name}")
        finally:
            os.close(number)
        listener.listen(64)
    except BaseException:
        listener.close()
        raise
    return listener


def receive_name(connection: socket.socket) -> str | None:
    """The next request; None: there is none any more. Raises StreamBroken."""
    head = _receive(connection, 4, may_end=True)
    if not head:
        return None
    size = int.from_bytes(head, "little")
    if not 2 < size < 1024:
        raise StreamBroken(f"a request of {size} bytes")
    message = _receive(connection, size)
    name = message[2:].decode("ascii", "replace")
    if message[0] != 0x0A or message[1] != len(name) or not _NAME.fullmatch(name):
        raise StreamBroken(f"a request that makes no sense: {message[:80]!r}")
    return name


def receive_pipe(connection: socket.socket) -> int:
    """What follows a request: CRIU's pipe. Raises StreamBroken."""
    descriptors = array.array("i")
    _, ancillary, _, _ = connection.recvmsg(1, socket.CMSG_SPACE(descriptors.itemsize), socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    if len(descriptors) != 1:
        raise StreamBroken("a request without a pipe")
    return descriptors[0]


def answer(connection: socket.socket, *, exists: bool) -> None:
    """On a restore, to a request."""
    connection.sendall(struct.pack("<IBB", 2, 0x08, exists))


def accepted(listener: socket.socket) -> socket.socket:
    connection, _ = listener.accept()
    connection.settimeout(_TIMEOUT_S)
    return connection


def enlarge(pipe: int) -> None:
    """So that who writes and who reads wait less often for each other."""
    import fcntl

    with contextlib.suppress(OSError):
        fcntl.fcntl(pipe, _F_SETPIPE_SZ, PIPE_BYTES)


class Client:
    """Who else wants to write or read a file of the same dump."""

    def __init__(self, directory: str, name: str) -> None:
        """
        Args:
            directory: a path short enough for a socket's, such as one in /proc/self/fd.
            name: `CAPTURE` or `SERVE`.

        Raises:
            OSError: nobody listens.
        """
        self._reads = name == SERVE
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._connection.settimeout(_TIMEOUT_S)
        self._connection.connect(f"{directory}/{name}")

    def open(self, name: str) -> int:
        """A pipe to write a file's content into, or to read it from. The caller closes it.

        Raises:
            FileNotFoundError: there is no such file to read. OSError.
        """
        message = bytes([0x0A, len(name)]) + name.encode()
        self._connection.sendall(len(message).to_bytes(4, "little") + message)
        if self._reads:
            found = _receive(self._connection, 6)
            if found != struct.pack("<IBB", 2, 0x08, 1):
                raise FileNotFoundError(2, "there is no such file in the dump", name)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        ours, theirs = (reader, writer) if self._reads else (writer, reader)
        enlarge(ours)
        try:
            socket.send_fds(self._connection, [b"\0"], [theirs])
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        return ours

    def close(self) -> None:
        self._connection.close()


class Whole(io.BufferedReader):
    """What comes out of a pipe, if it is as long as it has to be: one that was cut off may look like a shorter one."""

    def __init__(self, pipe: int, size: int) -> None:
        """The pipe is closed with it. `size` in bytes."""
        super().__init__(io.FileIO(pipe, "rb"), PIPE_BYTES)
        self._left = size

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        self._left -= len(found)
        return found

    def finish(self) -> None:
        """Read what is left. Raises StreamBroken unless all came."""
        while self.read(PIPE_BYTES):
            pass
        if self._left:
            raise StreamBroken(f"{abs(self._left)} bytes too {'few' if self._left > 0 else 'many'} came")


def _receive(connection: socket.socket, size: int, *, may_end: bool = False) -> bytes:
    found = b""
    while len(found) < size:
        part = connection.recv(size - len(found))
        if not part:
            if may_end and not found:
                return b""
            raise StreamBroken("the other end has gone")
        found += part
    return found
