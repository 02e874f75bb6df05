"""A real S3 server (versitygw) over a directory, and a proxy in front of it that breaks connections in chosen ways."""

from __future__ import annotations

import contextlib
import enum
import os
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import obstore
from obstore.store import S3Store

TOP = Path(__file__).parents[2]
ACCESS, SECRET = "kybernate", "not-a-secret"


class Unbuildable(Exception):
    """The server can't be had on this machine; the message is one line."""


def server_program() -> Path:
    """Where the server is. It is built before the tests (`make s3server`), never by one: that takes minutes.

    Raises Unbuildable.
    """
    built = sorted(TOP.glob(".cache/versitygw-*/versitygw"))
    if not built:
        raise Unbuildable("left out: no S3 server; `make s3server` builds it, with Go")
    return built[-1]


class Server:
    """One process; buckets are directories."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._program = server_program()
        self._log = root.with_suffix(".log").open("wb")
        self._process: subprocess.Popen[bytes] | None = None
        self.port = _free_port()
        self.start()

    def start(self, *, access: str = ACCESS, secret: str = SECRET) -> None:
        """With these credentials, and no others."""
        self._process = subprocess.Popen(
            [
                *(str(self._program), "--port", f"127.0.0.1:{self.port}", "--access", access, "--secret", secret),
                *("--quiet", "--keep-alive", "posix", str(self.root)),
            ],
            stdout=self._log,
            stderr=self._log,
            env={"PATH": os.environ["PATH"], "HOME": str(self.root)},
        )
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the S3 server doesn't start: {self.root.with_suffix('.log').read_text()[-500:]}")
            time.sleep(0.02)

    @property
    def alive(self) -> bool:
        return self._process is not None

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.stop()
        self._log.close()

    def make_bucket(self, name: str) -> None:
        (self.root / name).mkdir()


def options(port: int) -> dict[str, Any]:
    """For `ObjectMedium`."""
    return {
        "endpoint": f"http://127.0.0.1:{port}",
        "region": "us-east-1",
        "access_key_id": ACCESS,
        "secret_access_key": SECRET,
    }


def client(port: int, bucket: str) -> obstore.store.ObjectStore:
    """A store for looking at and breaking things past our own code."""
    return S3Store(bucket, client_options={"allow_http": True}, **options(port))


class Mode(enum.Enum):
    """What the proxy does with connections."""

    PASS = "pass"
    REFUSE = "refuse"
    """Close at once: nobody is there."""
    STALL = "stall"
    """Accept, and never answer."""
    ERROR = "error"
    """Answer every request with 500."""
    CUT = "cut"
    """Break each connection after some bytes, half-way in a request or an answer."""
    SLOW = "slow"
    """Let through so many bytes a second in all."""


class Proxy:
    """Listens on a port of its own. `mode` may change at any time; connections that are open then are broken."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._mode = Mode.PASS
        self._cut_after = 0
        self._bytes_per_s = 0.0
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self.connections = 0
        self.cuts = 0
        self._start(self._accept)

    def set(self, mode: Mode, *, cut_after: int = 0, bytes_per_s: float = 0.0) -> None:
        with self._lock:
            self._mode, self._cut_after, self._bytes_per_s = mode, cut_after, bytes_per_s
            open_now = list(self._open)
        for each in open_now:
            _break(each)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.set(Mode.REFUSE)
        for thread in self._threads:
            thread.join()

    def _start(self, work: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._open.add(connection)
                self.connections += 1
                mode = self._mode
            if mode is Mode.REFUSE:
                self._done(connection)
            elif mode is Mode.STALL:
                self._start(self._stall, connection)
            elif mode is Mode.ERROR:
                self._start(self._fail, connection)
            else:
                self._start(self._join, connection)

    def _join(self, connection: socket.socket) -> None:
        try:
            behind = socket.create_connection(("127.0.0.1", self._target))
        except OSError:
            self._done(connection)
            return
        with self._lock:
            self._open.add(behind)
        self._start(self._pump, connection, behind)
        self._pump(behind, connection)

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        passed = 0
        try:
            while content := source.recv(1 << 16):
                mode = self._mode
                if mode is Mode.CUT and passed + len(content) > self._cut_after:
                    target.sendall(content[: max(0, self._cut_after - passed)])
                    self.cuts += 1
                    break
                if mode is Mode.SLOW:
                    time.sleep(len(content) / self._bytes_per_s)
                target.sendall(content)
                passed += len(content)
        except OSError:
            pass
        self._done(source)
        self._done(target)

    def _stall(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while connection.recv(1 << 16):
                pass
        self._done(connection)

    def _fail(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.recv(1 << 16)
            connection.sendall(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        self._done(connection)

    def _done(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.discard(connection)
        _break(connection)
        connection.close()


def _break(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
