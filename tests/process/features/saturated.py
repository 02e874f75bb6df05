"""Connections that are full, both ways, and stay so while both ends work: TCP over loopback (IPv4, IPv6, one in the other) and
Unix sockets, within a process and to its child. Every byte is a known one, and every end knows how many it has sent.

At the end all is read to its last byte; what was wrong or missing is in RUN/control/result.json, and the exit status says it, too.
"""

from __future__ import annotations

import array
import itertools
import json
import os
import socket
import threading
import time

from station import CONTROL

_PIECE = 1 << 16
_NIBBLE = 3 << 15
_SMALL = 1 << 17
"""Bytes of a socket's buffers, where the kernel isn't left to choose (then they grow to 10 MB)."""
_PAUSE_S = 0.005
_PATIENCE_S = 60.0
LOOPBACKS = [
    (socket.AF_INET, "127.0.0.1", socket.AF_INET, "127.0.0.1"),
    (socket.AF_INET6, "::1", socket.AF_INET6, "::1"),
    (socket.AF_INET6, "::", socket.AF_INET, "127.0.0.1"),  # IPv4 on one end, IPv6 on the other
]
numbers = itertools.count(1)


def content(stream: int, begin: int, end: int) -> bytes:
    """Of a stream, by position: each eight bytes say where they are."""
    first, last = begin // 8, -(-end // 8)
    data = array.array("Q", range((stream << 48) + first, (stream << 48) + last)).tobytes()
    return data[begin - 8 * first : end - 8 * first]


class End:
    """One end of a connection: what it sends is a stream, what it receives another's."""

    def __init__(self, connection: socket.socket, *, out: int, in_: int, reads: bool, closes: bool = False) -> None:
        connection.setblocking(False)
        self.connection, self.out, self.in_ = connection, out, in_
        self.reads, self.closes = reads, closes
        self.sent = self.received = self.wrong = 0
        self.open = True

    def fill(self) -> None:
        """Send until it would block."""
        while self.open:
            try:
                self.sent += self.connection.send(content(self.out, self.sent, self.sent + _PIECE))
            except BlockingIOError:
                if self.closes:
                    self.close()
                return

    def close(self) -> None:
        if self.open:
            self.connection.shutdown(socket.SHUT_WR)
            self.open = False

    def take(self, limit: int) -> bytes | None:
        """None: nothing there."""
        try:
            data = self.connection.recv(limit)
        except BlockingIOError:
            return None
        expected = content(self.in_, self.received, self.received + len(data))
        if data != expected:
            self.wrong += sum(a != b for a, b in zip(data, expected, strict=True))
        self.received += len(data)
        return data


def pair(
    kind: tuple[socket.AddressFamily, str, socket.AddressFamily, str] | None, *, small: bool = True
) -> tuple[socket.socket, socket.socket]:
    """Two connected sockets. None: Unix."""
    if kind is None:
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    family, listens_at, client_family, connects_to = kind
    with socket.socket(family, socket.SOCK_STREAM) as server:
        if small:  # those that are accepted inherit it
            _shrink(server)
        if family is socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind((listens_at, 0))
        server.listen()
        client = socket.socket(client_family, socket.SOCK_STREAM)
        if small:
            _shrink(client)
        client.connect((connects_to, server.getsockname()[1]))
        return client, server.accept()[0]


def _shrink(connection: socket.socket) -> None:
    for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        connection.setsockopt(socket.SOL_SOCKET, buffer, _SMALL)


def ends(one: socket.socket, other: socket.socket, *, reads: bool, closes: bool = False) -> tuple[End, End]:
    there, back = next(numbers), next(numbers)
    return (
        End(one, out=there, in_=back, reads=reads, closes=closes),
        End(other, out=back, in_=there, reads=reads and not closes),
    )


class Blocked:
    """A thread that waits in send() for a reader who comes late."""

    def __init__(self, kind: tuple[socket.AddressFamily, str, socket.AddressFamily, str]) -> None:
        one, other = pair(kind)
        sender, self.reader = ends(one, other, reads=False)
        self.sender = sender
        one.setblocking(True)
        sender.sent = 2 << 20
        self.thread = threading.Thread(target=self._send, daemon=True)
        self.thread.start()

    def _send(self) -> None:
        self.sender.connection.sendall(content(self.sender.out, 0, self.sender.sent))
        self.sender.close()


def work(mine: list[End], go: str) -> None:
    """Keep them all full, reading a little here and there, until the file is there."""
    turn = itertools.cycle([end for end in mine if end.reads])
    first = True
    while not os.path.exists(go):
        for end in mine:
            end.fill()
        if first:
            (CONTROL / f"full.{os.getpid()}").touch()
            first = False
        next(turn).take(_NIBBLE)
        time.sleep(_PAUSE_S)


def drain(mine: list[End]) -> None:
    """Say the end, and read to the other's."""
    for end in mine:
        end.close()
    deadline = time.monotonic() + _PATIENCE_S
    left = set(mine)
    while left:
        got = False
        for end in list(left):
            data = end.take(1 << 20)
            got = got or data is not None
            if data == b"":
                left.remove(end)
        if not got:
            if time.monotonic() > deadline:
                raise SystemExit(f"nothing more comes on {len(left)} connections")
            time.sleep(_PAUSE_S)


def tell(mine: list[End], path: str) -> None:
    found = {
        "sent": {str(end.out): end.sent for end in mine},
        "received": {str(end.in_): end.received for end in mine},
        "wrong": sum(end.wrong for end in mine),
    }
    with open(path, "w") as file:
        json.dump(found, file)


def main() -> None:
    go = str(CONTROL / "go")
    own: list[End] = []
    for kind in (*LOOPBACKS, None):
        own += [*ends(*pair(kind), reads=True), *ends(*pair(kind), reads=False)]
    own += ends(*pair(LOOPBACKS[0]), reads=True, closes=True)
    own += ends(*pair(LOOPBACKS[1], small=False), reads=False)
    shared = [pair(kind) for kind in (*LOOPBACKS, LOOPBACKS[0], None)]
    made = [ends(one, other, reads=number != 3) for number, (one, other) in enumerate(shared)]
    child = os.fork()
    mine = [pair_[1] for pair_ in made] if child == 0 else own + [pair_[0] for pair_ in made]
    for one, other in shared:
        (one if child == 0 else other).close()
    if child == 0:
        work(mine, go)
        drain(mine)
        tell(mine, str(CONTROL / "child.json"))
        os._exit(0)
    blocked = Blocked(LOOPBACKS[1])
    work_until_ready = threading.Thread(target=_say_ready, args=(child,), daemon=True)
    work_until_ready.start()
    work(mine, go)
    drain([*mine, blocked.reader])
    blocked.thread.join(_PATIENCE_S)
    _, status = os.waitpid(child, 0)
    tell([*mine, blocked.reader, blocked.sender], str(CONTROL / "parent.json"))
    parts = [
        json.loads((CONTROL / f"{who}.json").read_text())
        for who in (("parent", "child") if status == 0 else ("parent",))
    ]
    sent = {stream: size for part in parts for stream, size in part["sent"].items()}
    received = {stream: size for part in parts for stream, size in part["received"].items()}
    sent.pop(str(blocked.reader.out))
    received.pop(str(blocked.sender.in_))
    missing = sum(abs(size - received.get(stream, 0)) for stream, size in sent.items())
    result = {
        "bytes": sum(received.values()),
        "wrong": sum(part["wrong"] for part in parts) + missing,
        "child": status,
    }
    (CONTROL / "result.json").write_text(json.dumps(result))
    print(result, flush=True)
    raise SystemExit(bool(result["wrong"] or status))


def _say_ready(child: int) -> None:
    while not all((CONTROL / f"full.{pid}").exists() for pid in (os.getpid(), child)):
        time.sleep(_PAUSE_S)
    print("ready", flush=True)


main()
