"""What the scenarios share: the agent's GPU side, whole, and a peer that speaks the protocol at a socket."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from kybernate.cuda import packets, wire
from kybernate.cuda.broker import Broker, Verdict
from kybernate.cuda.copying import CopyEngine
from kybernate.cuda.driver import Gpu, call, open_gpus
from kybernate.cuda.extents import Extent
from kybernate.cuda.hashing import Hasher, HashKey, load_key
from kybernate.cuda.kernels import Kernels
from kybernate.cuda.pool import PinnedPool
from kybernate.model.types import CHUNK_BYTES, MIB, HostPid, WorkloadName

T = TypeVar("T")
NAME = WorkloadName("w")
WORDS = CHUNK_BYTES // 4


def eventually(condition: Callable[[], T], what: str, timeout_s: float = 60.0) -> T:
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.002)
    return value


@dataclass
class Policy:
    """An admission that does as it is told."""

    verdict: Verdict = Verdict.GRANT
    room: bool = True
    gate: threading.Event = field(default_factory=threading.Event)
    hellos: list[tuple[WorkloadName, HostPid, int]] = field(default_factory=list)

    def hello(self, *, workload: WorkloadName, pid: HostPid, pid_inside: int) -> None:
        self.hellos.append((workload, pid, pid_inside))

    def may_allocate(self, *, workload: WorkloadName, gpu: Gpu, size: int) -> Verdict:
        return self.verdict

    def make_room(self, *, workload: WorkloadName, gpu: Gpu, size: int) -> bool:
        assert self.gate.wait(60)
        return self.room


class Rig:
    """The GPU side of an agent whose state lies in `directory`."""

    def __init__(self, directory: Path, *, pool_bytes: int = 128 * MIB, gpus: list[Gpu] | None = None) -> None:
        self.directory = directory
        self.gpus = gpus or open_gpus()
        self.gpu = self.gpus[0]
        self.policy = Policy()
        self.broker = Broker(gpus=self.gpus, admission=self.policy, extent_bytes=64 * MIB)
        self.pool = PinnedPool(
            path=directory / "pool", size_bytes=pool_bytes, gpus=self.gpus, segment_bytes=16 * MIB, spare_bytes=0
        )
        self.pool.start()
        self.pool.wait_ready(30)
        self.kernels = Kernels(self.gpu, cache=directory)
        self.key: HashKey = load_key(directory / "hash.key")
        self.hasher = Hasher(self.gpu, key=self.key, kernels=self.kernels)
        self.engine = CopyEngine(self.gpu, pool=self.pool, hasher=self.hasher)

    def close(self) -> None:
        self.broker.close()
        self.pool.close()

    def create(self, *sizes: int, pid: int = 1) -> list[Extent]:
        return self.broker.create(workload=NAME, pid=HostPid(pid), gpu=self.gpu, sizes=sizes)

    def write(self, extent: Extent, chunk: int, words: npt.NDArray[np.uint32], *, word: int = 0) -> None:
        with self.gpu.current():
            address = extent.device_pointer + chunk * CHUNK_BYTES + 4 * word
            call("cuMemcpyHtoD", address, words.ctypes.data, words.nbytes)

    def read(self, extent: Extent) -> npt.NDArray[np.uint32]:
        """Shape (chunks, words)."""
        words = np.empty((extent.chunks, WORDS), dtype=np.uint32)
        with self.gpu.current():
            call("cuMemcpyDtoH", words.ctypes.data, extent.device_pointer, extent.size)
        return words

    def slot_content(self, slot: int) -> npt.NDArray[np.uint32]:
        with (self.directory / "pool").open("rb") as file:
            file.seek(slot * CHUNK_BYTES)
            return np.frombuffer(file.read(CHUNK_BYTES), dtype=np.uint32)


@contextmanager
def listening(rig: Rig, name: WorkloadName = NAME) -> Iterator[Path]:
    path = rig.directory / f"{name}.sock"
    rig.broker.listen(name, path, uid=os.geteuid(), gid=os.getegid())
    try:
        yield path
    finally:
        rig.broker.stop_listening(name)


def connect(path: Path) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    peer.settimeout(60)
    peer.connect(os.fspath(path))
    return peer


def ask(path: Path, message: wire.Message) -> tuple[list[wire.Message], list[int]]:
    """One question, all packets of its answer and their descriptors."""
    with connect(path) as peer:
        packets.send(peer, message)
        answers: list[wire.Message] = []
        fds: list[int] = []
        while True:
            came = packets.receive(peer)
            assert came is not None, "the broker hung up"
            answers.append(came[0])
            fds += came[1]
            if not came[0].more:
                return answers, fds


def allocate(
    path: Path, gpu: Gpu, size: int, flags: wire.Flag = wire.Flag.NONE
) -> tuple[list[wire.Message], list[int]]:
    return ask(path, wire.Message(wire.Type.ALLOCATE, argument=size, gpu=gpu.uuid_bytes, flags=flags))


def records(answers: Sequence[wire.Message]) -> list[wire.Record]:
    return [record for answer in answers for record in answer.records]
