"""Processes on a simulated GPU of their own, driven call by call."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest

from kybernate.cuda import simulated

MIB = 1 << 20
GPU_BYTES = 128 * MIB
WORKER = Path(__file__).with_name("worker.py")
REPLY_TIMEOUT_S = 60

SUCCESS = 0
INVALID_VALUE = 1
OUT_OF_MEMORY = 2
NOT_INITIALIZED = 3
NO_DEVICE = 100
ILLEGAL_STATE = 401
NOT_FOUND = 500
NOT_READY = 600
ILLEGAL_ADDRESS = 700
NOT_SUPPORTED = 801
CAPTURE_UNSUPPORTED = 900

RUNNING, LOCKED, CHECKPOINTED, FAILED = range(4)
POSIX_FD = 1
READ_WRITE = 3


@dataclass(frozen=True)
class Out:
    """A parameter the call writes to; `size` in bytes."""

    size: int = 8


@dataclass(frozen=True)
class Received:
    """The descriptor sent along with the call."""


def properties(*, exportable: bool = True) -> bytes:
    """A CUmemAllocationProp for device 0."""
    return struct.pack("<iiiiQ8x", 1, POSIX_FD if exportable else 0, 1, 0, 0)


def access(flags: int = READ_WRITE) -> bytes:
    """A CUmemAccessDesc for device 0."""
    return struct.pack("<iii", 1, 0, flags)


def number(content: bytes) -> int:
    return int.from_bytes(content, "little")


class Process:
    """One process with the simulated driver. `call` gives (result, what it wrote)."""

    def __init__(self, environment: dict[str, str], *, prefix: Sequence[str] = (), setup: bool = True) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.popen = subprocess.Popen(
                [*prefix, sys.executable, str(WORKER), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=environment,
            )
        ours.settimeout(REPLY_TIMEOUT_S)
        self.channel = ours
        if setup:
            try:
                assert self.ask("setup") == [SUCCESS, SUCCESS]
            except BaseException:
                self.__exit__()
                raise

    @property
    def pid(self) -> int:
        return self.popen.pid

    def ask(self, do: str, *, fds: Sequence[int] = (), **words: Any) -> Any:
        socket.send_fds(self.channel, [json.dumps({"do": do, **words}).encode()], list(fds))
        reply = self.channel.recv(1 << 20)
        assert reply, f"the process ended in {do}: status {self.popen.wait(60)}"
        return json.loads(reply)

    @staticmethod
    def _arguments(arguments: Sequence[int | bytes | Out | Received]) -> list[Any]:
        def one(argument: int | bytes | Out | Received) -> Any:
            match argument:
                case Out(size):
                    return {"out": size}
                case Received():
                    return {"received": 0}
                case bytes():
                    return {"in": argument.hex()}
                case _:
                    return argument

        return [one(argument) for argument in arguments]

    def call(self, name: str, *arguments: int | bytes | Out | Received, fds: Sequence[int] = ()) -> tuple[Any, ...]:
        result, outs = self.ask("call", fds=fds, name=name, arguments=self._arguments(arguments))
        return (result, *[bytes.fromhex(out) for out in outs])

    def result(self, name: str, *arguments: int | bytes | Out | Received, fds: Sequence[int] = ()) -> int:
        return int(self.call(name, *arguments, fds=fds)[0])

    def ok(self, name: str, *arguments: int | bytes | Out | Received, fds: Sequence[int] = ()) -> Any:
        """The call must succeed; its one output as a number, several as numbers, or None."""
        result, *outs = self.call(name, *arguments, fds=fds)
        assert result == SUCCESS, name
        numbers = [number(out) for out in outs]
        return numbers[0] if len(numbers) == 1 else tuple(numbers) or None

    def launch(self, kernel: str, *values: int, stream: int = 0) -> int:
        return int(self.ask("launch", kernel=kernel, values=values, stream=stream)[0])

    def start(self, name: str, *arguments: int | bytes | Out) -> int:
        """Call in a thread of its own; its thread id (inside)."""
        return int(self.ask("start", name=name, arguments=self._arguments(arguments)))

    def start_launch(self, kernel: str, *values: int) -> int:
        """Launch in a thread of its own; its thread id (inside)."""
        return int(self.ask("start_launch", kernel=kernel, values=values))

    def join(self, thread: int, *, timeout_s: float = 20) -> int | None:
        """The result of a started call; None if it is still in there."""
        ended = self.ask("join", thread=thread, timeout_s=timeout_s)
        return None if ended is None else int(ended[0])

    def take_fd(self, fd: int) -> int:
        """A duplicate, here, of a descriptor there."""
        socket.send_fds(self.channel, [json.dumps({"do": "send_fd", "fd": fd}).encode()], [])
        _, fds, _, _ = socket.recv_fds(self.channel, 1 << 16, 1)
        return fds[0]

    def allocate(self, size: int) -> int:
        return int(self.ok("cuMemAlloc_v2", Out(), size))

    def read(self, address: int, size: int = 16) -> bytes:
        result, content = self.call("cuMemcpyDtoH_v2", Out(size), address, size)
        assert result == SUCCESS
        return bytes(content)

    def sum(self, address: int, words: int) -> int:
        out = self.allocate(8)
        assert self.launch("sum_u32", address, words, out) == SUCCESS
        value = number(self.read(out, 8))
        self.ok("cuMemFree_v2", out)
        return value

    def create(self, size: int, *, exportable: bool = True) -> int:
        return int(self.ok("cuMemCreate", Out(), size, properties(exportable=exportable), 0))

    def export(self, handle: int) -> int:
        """The descriptor, in the process."""
        return int(self.ok("cuMemExportToShareableHandle", Out(4), handle, POSIX_FD, 0))

    def import_from(self, fd: int) -> int:
        """`fd`: of ours."""
        return int(self.ok("cuMemImportFromShareableHandle", Out(), Received(), POSIX_FD, fds=[fd]))

    def map(self, handle: int, size: int, *, at: int = 0) -> int:
        address = at or int(self.ok("cuMemAddressReserve", Out(), size, 0, 0, 0))
        self.ok("cuMemMap", address, size, 0, handle, 0)
        self.ok("cuMemSetAccess", address, size, access(), 1)
        return address

    def free_bytes(self) -> int:
        return int(self.ok("cuMemGetInfo_v2", Out(), Out())[0])

    def state_of(self, pid: int) -> int:
        return int(self.ok("cuCheckpointProcessGetState", pid, Out(4)))

    def lock(self, pid: int, *, timeout_ms: int = 5000) -> int:
        return self.result("cuCheckpointProcessLock", pid, struct.pack("<I60x", timeout_ms))

    def checkpoint(self, pid: int) -> int:
        return self.result("cuCheckpointProcessCheckpoint", pid, 0)

    def restore(self, pid: int) -> int:
        return self.result("cuCheckpointProcessRestore", pid, 0)

    def unlock(self, pid: int) -> int:
        return self.result("cuCheckpointProcessUnlock", pid, 0)

    def park(self, pid: int) -> None:
        assert (self.lock(pid), self.checkpoint(pid)) == (SUCCESS, SUCCESS)

    def bring_back(self, pid: int) -> None:
        assert (self.restore(pid), self.unlock(pid)) == (SUCCESS, SUCCESS)

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()
        with contextlib.suppress(ProcessLookupError):
            self.kill()


@pytest.fixture
def gpu_path() -> Iterator[Path]:
    """A short path, since sockets lie under it."""
    directory = Path(tempfile.mkdtemp(prefix="kyb-gpu-"))
    directory.chmod(0o755)
    yield directory / "gpu"
    with contextlib.suppress(Exception):
        simulated.remove(directory / "gpu")
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def gpu(gpu_path: Path) -> simulated.SimulatedGpu:
    return simulated.make(gpu_path, size_bytes=GPU_BYTES)


@pytest.fixture
def start(gpu: simulated.SimulatedGpu) -> Iterator[Callable[..., Process]]:
    """`start()` gives a process with a current context on the GPU."""
    with contextlib.ExitStack() as stack:

        def make(*, variables: dict[str, str] | None = None, **words: Any) -> Process:
            environment = {**simulated.environment([gpu], os.environ), **(variables or {})}
            return stack.enter_context(Process(environment, **words))

        yield make


@pytest.fixture
def process(start: Callable[..., Process]) -> Process:
    return start()
