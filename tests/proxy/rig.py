"""What tests of the activator's worker share: the worker as a process, an agent at its socket, servers behind it, plain clients."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

from kybernate.model.messages import Close, Configure, Endpoint, Limits, Message, Open, decode, encode

M = TypeVar("M")
PROGRAMS = Path(__file__).parent / "programs"
WAIT_S = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def around_the_kernels_limit() -> range:
    """Sizes of answers of which the kernel takes all but a part that the worker has to keep. It may take a bit more or less
    than its setting says."""
    with open("/proc/sys/net/ipv4/tcp_wmem") as file:  # noqa: PTH123
        most = int(file.read().split()[2])
    return range(most - (256 << 10), most + (768 << 10), 64 << 10)


class AgentPeer:
    """The agent's end of the workers' socket. It can go away and come back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.received: list[Message] = []
        self.connections = 0
        self._changed = threading.Condition()
        self._listener: socket.socket | None = None
        self._lines: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.first: list[Message] = []
        """Sent to each worker that connects."""

    def start(self) -> None:
        self.path.unlink(missing_ok=True)
        listener = self._listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.path))
        listener.listen()
        self._run(self._accept, listener)

    def stop(self) -> None:
        """As if it was killed."""
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        for line in self._lines:
            line.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for line in self._lines:
            line.close()
        self._lines.clear()
        self._threads.clear()

    def send(self, *messages: Message) -> None:
        self.send_raw(b"".join(encode(message) for message in messages))

    def send_raw(self, data: bytes) -> None:
        for line in self._lines:
            line.sendall(data)

    def of(self, kind: type[M], matching: Callable[[M], bool] = lambda _: True) -> list[M]:
        with self._changed:
            return [m for m in self.received if isinstance(m, kind) and matching(m)]

    def wait(self, kind: type[M], matching: Callable[[M], bool] = lambda _: True, *, count: int = 1) -> M:
        """The `count`th message like this, from the beginning."""
        deadline = time.monotonic() + WAIT_S
        with self._changed:
            while True:
                found = [m for m in self.received if isinstance(m, kind) and matching(m)]
                if len(found) >= count:
                    return found[count - 1]
                if not self._changed.wait(deadline - time.monotonic()):
                    raise AssertionError(f"no {kind.__name__} like this among {self.received[-20:]}")

    def _run(self, target: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                line, _ = listener.accept()
            except OSError:
                return
            self._lines.append(line)
            line.sendall(b"".join(encode(message) for message in self.first))
            with self._changed:
                self.connections += 1
                self._changed.notify_all()
            self._run(self._read, line)

    def _read(self, line: socket.socket) -> None:
        with line.makefile("rb") as file:
            for text in file:
                message = decode(text)
                assert message is not None
                with self._changed:
                    self.received.append(message)
                    self._changed.notify_all()


class Upstream:
    """programs/upstream.py as a process."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAMS / "upstream.py"), *arguments], stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    @property
    def pid(self) -> int:
        return self.process.pid

    def control(self, path: str = "/_seen") -> dict[str, Any]:
        with Client(self.port) as client:
            answer: dict[str, Any] = client.ask("GET", path).json()
            return answer

    @property
    def requests(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.control()["requests"]
        return found

    def release(self) -> bool:
        return bool(self.control("/_release")["done"])

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Answer:
    def __init__(self, status: int, fields: dict[str, str], body: bytes, raw: bytes) -> None:
        self.status, self.fields, self.body, self.raw = status, fields, body, raw

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """Of an error."""
        code: str = self.json()["error"]["code"]
        return code


class Client:
    """One connection, with nothing between the test and the bytes."""

    def __init__(self, port: int, *, wrap: Callable[[socket.socket], socket.socket] = lambda s: s) -> None:
        self.socket = wrap(socket.create_connection(("127.0.0.1", port), timeout=WAIT_S))
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ask(self, method: str, path: str, body: bytes | None = None, /, **fields: str) -> Answer:
        self.send(request(method, path, body, **fields))
        return self.answer(head_only=method == "HEAD")

    def model(self, name: str, path: str = "/v1/chat/completions", **fields: str) -> Answer:
        return self.ask("POST", path, json.dumps({"model": name}).encode(), **fields)

    def answer(self, *, head_only: bool = False) -> Answer:
        head = self.until(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        status = int(lines[0].split(" ")[1])
        fields = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines[1:-2])}
        if status < 200 or status in (204, 304) or head_only:
            return Answer(status, fields, b"", head)
        if "content-length" in fields:
            body = self.exactly(int(fields["content-length"]))
        elif fields.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self.until(b"\r\n"), 16):
                body += self.exactly(size)
                assert self.exactly(2) == b"\r\n"
            while self.until(b"\r\n") != b"\r\n":
                pass
        else:
            body = self.rest()
        return Answer(status, fields, body, head)

    def until(self, end: bytes) -> bytes:
        while end not in self._buffer:
            self._more()
        found, _, self._buffer = self._buffer.partition(end)
        return found + end

    def exactly(self, size: int) -> bytes:
        pieces = [self._buffer]
        have = len(self._buffer)
        while have < size:
            piece = self.socket.recv(1 << 20)
            if not piece:
                raise EOFError("the connection ended early")
            pieces.append(piece)
            have += len(piece)
        whole = b"".join(pieces)
        self._buffer = whole[size:]
        return whole[:size]

    def rest(self) -> bytes:
        pieces = [self._buffer]
        while piece := self.socket.recv(1 << 20):
            pieces.append(piece)
        self._buffer = b""
        return b"".join(pieces)

    @property
    def ended(self) -> bool:
        """Waits until something comes. True: nothing but the end did."""
        try:
            return not self._buffer and self.socket.recv(1, socket.MSG_PEEK) == b""
        except ConnectionResetError:
            return True

    def _more(self) -> None:
        piece = self.socket.recv(1 << 16)
        if not piece:
            raise EOFError(f"the connection ended behind {self._buffer[:200]!r}")
        self._buffer += piece


def request(method: str, path: str, body: bytes | None = None, **fields: str) -> bytes:
    lines = {"host": "here", **{name.replace("_", "-"): value for name, value in fields.items()}}
    if body is not None:
        lines.setdefault("content-type", "application/json")
        lines["content-length"] = str(len(body))
    text = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{n}: {v}\r\n" for n, v in lines.items())
    return text.encode("latin-1") + b"\r\n" + (body or b"")


class Rig:
    """A worker and its agent."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.agent = AgentPeer(directory / "workers.sock")
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.upstreams: list[Upstream] = []
        self.epoch = 0
        self.log = directory / "worker.log"

    def start(self, *arguments: str, limit_nofile: int | None = None, **environment: str) -> None:
        self.agent.start()
        limit = [] if limit_nofile is None else ["prlimit", f"--nofile={limit_nofile}:{limit_nofile}"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *limit,
                    sys.executable,
                    "-W",
                    "error",
                    "-m",
                    "kybernate.proxy",
                    *("--agent", str(self.agent.path), "--listen", f"127.0.0.1:{self.port}", *arguments),
                ],
                stderr=log,
                env={**os.environ, **environment},
            )

    @property
    def started(self) -> subprocess.Popen[bytes]:
        """The worker's process; it has been started."""
        assert self.process is not None
        return self.process

    @property
    def pid(self) -> int:
        return self.started.pid

    def upstream(self, *arguments: str) -> Upstream:
        made = Upstream(*arguments)
        self.upstreams.append(made)
        return made

    def configure(self, *endpoints: Endpoint, wait: bool = True, **settings: Any) -> None:
        """Also for every later connection; returns when the worker listens."""
        self.agent.first = [Configure(endpoints=endpoints, **settings)]
        if not self.agent.connections:
            if self.process is None:
                self.start()
            else:
                deadline = time.monotonic() + WAIT_S
                while not self.agent.connections and time.monotonic() < deadline:
                    time.sleep(0.005)
        self.agent.send(*self.agent.first)
        if wait:
            self.wait_for_port()

    def wait_for_port(self) -> None:
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
            except ConnectionRefusedError:
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.005)
            else:
                return

    def open(self, model: str = "m", **settings: Any) -> None:
        self.epoch += 1
        self.agent.send(Open(model=model, epoch=self.epoch, **{"network_pid": None, **settings}))

    def close(self, model: str = "m", *, preempt: bool = False) -> int:
        self.agent.send(Close(model=model, epoch=self.epoch, preempt=preempt))
        return self.epoch

    def serve(self, *, limits: Limits = Limits(), **endpoint: Any) -> Upstream:  # noqa: B008 - frozen
        """One model `m` with a server, open."""
        server = self.upstream()
        self.configure(Endpoint("m", server.port, paths=("/svc",), limits=limits, **endpoint))
        self.open()
        return server

    def client(self) -> Client:
        return Client(self.port)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(WAIT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.agent.stop()
        for server in self.upstreams:
            server.stop()
        text = self.log.read_text() if self.log.exists() else ""
        assert "Traceback" not in text, text[-4000:]
