"""What a round happens to: two agents on one simulated GPU and one bucket, each with a small real disk of its own, and the means
to break each of these. Knows nothing of what the agents are asked for.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from tests.agent.conftest import GPU_BYTES, AgentProcess
from tests.guardian import clean
from tests.soak.plan import Fault
from tests.store.server import ACCESS, SECRET, Mode, Proxy, Server

from kybernate.cli.simulated import gpu_path
from kybernate.cuda import simulated
from kybernate.model.errors import KybernateError
from kybernate.model.types import MIB, workload_name
from kybernate.process.cgroups import WorkloadCgroup

POOL_BYTES = 96 * MIB
"""Less than all workloads together: some go to the disk to make room."""
DISK_BYTES = 320 * MIB
assert GPU_BYTES > POOL_BYTES
_MODES: dict[Fault, dict[str, float]] = {
    Fault.SERVER_REFUSES: {},
    Fault.SERVER_STALLS: {},
    Fault.SERVER_FAILS: {},
    Fault.SERVER_CUTS: {"cut_after": 3 * MIB},
    Fault.SERVER_SLOW: {"bytes_per_s": 8 * MIB},
}
_PROXY = {
    Fault.SERVER_REFUSES: Mode.REFUSE,
    Fault.SERVER_STALLS: Mode.STALL,
    Fault.SERVER_FAILS: Mode.ERROR,
    Fault.SERVER_CUTS: Mode.CUT,
    Fault.SERVER_SLOW: Mode.SLOW,
}
_HELPER_S = 2.0


class World:
    """Use it as a context: what was started in it is gone afterwards."""

    def __init__(self, root: Path, server: Server) -> None:
        self.root = root
        self.server = server
        self.agents: list[AgentProcess] = []
        self.disks: list[Path] = []
        self.bucket = server.root / f"soak-{secrets.token_hex(6)}"
        self.deaths = 0
        """Of agents, so far."""

    def __enter__(self) -> Self:
        self.server.make_bucket(self.bucket.name)
        self._proxy = Proxy(self.server.port)
        credentials = self.root / "credentials.yaml"
        credentials.touch(0o600)
        credentials.write_text(f"access_key_id: {ACCESS}\nsecret_access_key: {SECRET}\n")
        try:
            for number in range(2):
                self.disks.append(self._disk(number))
                self.agents.append(self._agent(number))
                self.agents[number].start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for agent in self.agents:
            with contextlib.suppress(AssertionError):
                agent.kill()
            agent.client.close()
        clean(self.root)
        self._proxy.close()
        shutil.rmtree(self.bucket, ignore_errors=True)
        for agent in self.agents[:1]:
            with contextlib.suppress(KybernateError):
                simulated.remove(gpu_path(agent.state))

    def _disk(self, number: int) -> Path:
        image, place = self.root / f"disk-{number}.image", self.root / f"disk-{number}"
        with image.open("wb") as file:
            file.truncate(DISK_BYTES)
        path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True, capture_output=True, env={"PATH": path})
        place.mkdir()
        subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True, capture_output=True)
        return place

    def _agent(self, number: int) -> AgentProcess:
        store = {
            "directory": str(self.disks[number] / "store"),
            "object": {
                "url": f"s3://{self.bucket.name}/snapshots",
                "endpoint": f"http://127.0.0.1:{self._proxy.port}",
                "region": "us-east-1",
                "credentials_file": str(self.root / "credentials.yaml"),
                "patience": 1,
            },
        }
        settings = (
            f"agent:\n  pool: {{size: {POOL_BYTES}}}\n  arbiter: {{min_run: 0.2, settle: 0.2, wait_limit: 20}}\n"
            f"  store: {json.dumps(store)}\n"
        )
        place = self.root / "ab"[number]
        place.mkdir()
        environment: dict[str, str] = {}
        if number:  # on the first one's GPU
            environment = simulated.environment([simulated.describe(gpu_path(self.agents[0].state))], {})
        return AgentProcess(place, settings=settings, simulated_gpu=not number, environment=environment)

    # -- breaking ----------------------------------------------------------------------------------------------------

    def restart(self, number: int, *, kill: bool = True) -> None:
        """A crash, or an ordinary end, and a new agent."""
        self.deaths += 1
        agent = self.agents[number]
        if kill:
            agent.kill()
        else:
            agent.end()
        agent.start()

    def reboot(self, number: int) -> None:
        """All that lives in RAM is gone."""
        self.deaths += 1
        agent = self.agents[number]
        agent.kill()
        for group in self._groups(number):
            group.remove(10.0)
        # Not the directory itself: the other agent's clones of what was imaged here show their own in its place.
        clean(agent.state.root, itself=False)
        agent.start()

    def break_server(self, fault: Fault) -> None:
        if fault is Fault.SERVER_DIES:
            self.server.stop()
        else:
            self._proxy.set(_PROXY[fault], **_MODES[fault])  # type: ignore[arg-type]

    def fill_disk(self, number: int) -> None:
        status = os.statvfs(self.disks[number])
        with (self.disks[number] / "full").open("ab") as file, contextlib.suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_frsize)
        with (self.disks[number] / "full-too").open("ab") as file, contextlib.suppress(OSError):
            while True:
                os.write(file.fileno(), bytes(4096))

    def heal(self) -> None:
        """All but the dead is as it was."""
        for disk in self.disks:
            for name in ("full", "full-too"):
                (disk / name).unlink(missing_ok=True)
        self._proxy.set(Mode.PASS)
        if not self.server.alive:
            self.server.start()

    def kill_helper(self, dumper: bool, delay_s: float) -> tuple[str, str] | None:
        """Kill the first CRIU, or program that dumps, that comes along. Returns whose it was, and what it did."""
        wanted = b"process.dumper" if dumper else b"criu"
        deadline = time.monotonic() + _HELPER_S
        while time.monotonic() < deadline:
            for name, pid, command in self._helpers():
                if wanted in command and (dumper or b"process.dumper" not in command):
                    time.sleep(delay_s)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        return name, "dump" if dumper or b"\0dump\0" in command else "restore"
            time.sleep(0.002)
        return None

    def kill_workload(self, number: int, name: str, *, supervisor: bool) -> None:
        """Its processes, or who looks after them."""
        for group in self._groups(number):
            if group.path.name == name:
                for pid in group.helper_pids() if supervisor else group.pids():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    def _helpers(self) -> Iterator[tuple[str, int, bytes]]:
        for number in range(2):
            for group in self._groups(number):
                for pid in group.helper_pids():
                    with contextlib.suppress(OSError):
                        yield group.path.name, pid, Path(f"/proc/{pid}/cmdline").read_bytes()

    def _groups(self, number: int) -> list[WorkloadCgroup]:
        state = self.agents[number].state.root
        probe = workload_name("probe")
        tops = [group.path.parent for group in WorkloadCgroup.existing(state_directory=state, name=probe)]
        return [WorkloadCgroup(path) for top in tops for path in top.iterdir() if path.is_dir()]
