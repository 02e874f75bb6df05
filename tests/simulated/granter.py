"""An agent that only grants memory: a broker behind one workload's door, ordered about by the tests, and killed by them.

Run as `python granter.py FD RUN_DIRECTORY CAPACITY`: FD is a SOCK_SEQPACKET socket that carries one JSON request a packet and
its answer. What goes over CAPACITY bytes waits, or is refused where the process itself holds too much.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from kybernate.cuda.broker import Broker, Verdict
from kybernate.cuda.control import Control
from kybernate.cuda.driver import Gpu, open_gpus
from kybernate.cuda.packets import close_all
from kybernate.model.types import HostPid, WorkloadName

NAME = WorkloadName("kept")


class Granter:
    """Admission of its own broker."""

    def __init__(self, directory: Path, capacity: int) -> None:
        self._directory = directory
        self._capacity = capacity
        self._own = capacity
        self._asked = 0
        self._waited = 0
        self._room = threading.Event()
        gpus = open_gpus()
        self._by_uuid = {gpu.uuid_bytes: gpu for gpu in gpus}
        self._broker = Broker(gpus=gpus, admission=self)
        self._broker.listen(NAME, directory / "agent.sock", uid=os.geteuid(), gid=os.getegid())

    def hello(self, *, workload: WorkloadName, pid: HostPid, pid_inside: int) -> None:
        """Anybody may come."""

    def may_allocate(self, *, workload: WorkloadName, gpu: Gpu, size: int) -> Verdict:
        self._asked += 1
        held = self._broker.resident_bytes(NAME)
        if held + size > self._own:
            return Verdict.NEVER
        return Verdict.WAIT if held + size > self._capacity else Verdict.GRANT

    def make_room(self, *, workload: WorkloadName, gpu: Gpu, size: int) -> bool:
        self._waited += 1
        return self._room.wait(60)

    def answer(self, request: dict[str, Any]) -> Any:
        match request["do"]:
            case "state":
                return {"resident": self._broker.resident_bytes(NAME), "asked": self._asked, "waited": self._waited}
            case "limit":
                self._capacity, self._own = request["capacity"], request["own"]
            case "make room":
                self._room.set()
            case "adopt":
                with Control(self._directory / "control" / f"{request['pid']}.sock") as control:
                    listed = control.extents()
                for record, fd in listed:
                    assert fd is not None
                    gpu = self._by_uuid[record.gpu]
                    self._broker.adopt(workload=NAME, pid=HostPid(request["pid"]), gpu=gpu, record=record, fd=fd)
                close_all(fd for _, fd in listed if fd is not None)
                return len(listed)
            case unknown:
                raise ValueError(unknown)
        return None

    def serve(self, channel: socket.socket) -> None:
        channel.send(b"ready")
        while packet := channel.recv(1 << 16):
            channel.send(json.dumps(self.answer(json.loads(packet))).encode())


if __name__ == "__main__":
    Granter(Path(sys.argv[2]), int(sys.argv[3])).serve(socket.socket(fileno=int(sys.argv[1])))
