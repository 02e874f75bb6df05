"""A program that asks for io_uring and does without, and has System V objects, goes below RAM and back, through a real agent."""

from __future__ import annotations

import sys

import pytest
from tests.agent.conftest import MakeAgent, kybernate
from tests.conftest import SLOWER, Eventually

from kybernate.model.api import SnapshotRequest
from kybernate.model.errors import Unsupported
from kybernate.model.types import TierName

pytestmark = [pytest.mark.root, pytest.mark.timeout(300 * SLOWER)]

PROGRAM = """
import ctypes, struct, time
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
ring = libc.syscall(425, 4, ctypes.create_string_buffer(120))
print("ring" if ring >= 0 else "no ring", flush=True)
segment = libc.shmget(0x77, 1 << 20, 0o1600)
counter = ctypes.c_uint64.from_address(libc.shmat(segment, None, 0))
semaphores = libc.semget(0x78, 1, 0o1600)
libc.semctl(semaphores, 0, 16, 5)
while True:
    counter.value += 1
    assert libc.shmget(0x77, 0, 0) == segment
    assert libc.semctl(semaphores, 0, 12) == 5
    print("count", counter.value, flush=True)
    time.sleep(0.02)
"""


def test_it_goes_to_the_disk_and_back_and_is_cloned(make_agent: MakeAgent, eventually: Eventually) -> None:
    agent = make_agent()
    agent.run("server", sys.executable, "-c", PROGRAM)
    eventually(lambda: "count 3\n" in agent.output("server"), timeout_s=60, what="it runs")
    assert "no ring\n" in agent.output("server")
    for _ in range(2):
        paused = agent.client.pause("server", tier=TierName.NVME)
        assert paused.tier is TierName.NVME
        before = counts(agent.output("server"))
        agent.client.resume("server")
        eventually(
            lambda last=before[-1]: counts(agent.output("server"))[-1] > last + 3, timeout_s=60, what="it counts"
        )
    found = counts(agent.output("server"))
    assert found == list(range(1, len(found) + 1)), "no step was lost, none done twice"
    agent.client.snapshot("server", SnapshotRequest.of(image="gold"))
    agent.client.clone("gold", "clone")
    eventually(lambda: len(counts(agent.output("clone"))) > 3, timeout_s=60, what="its clone counts")
    for name in ("server", "clone"):
        agent.client.stop(name, remove=True)


def counts(text: str) -> list[int]:
    return [int(line.split()[1]) for line in text.splitlines() if line.startswith("count ")]


def test_with_io_uring_it_stays_in_ram_and_is_told_why(make_agent: MakeAgent, eventually: Eventually) -> None:
    agent = make_agent()
    ran = kybernate(agent, "run", "rings", "--io-uring", "--", sys.executable, "-c", PROGRAM)
    assert ran.returncode == 0, ran.stderr
    eventually(lambda: "count 1\n" in agent.output("rings"), timeout_s=60, what="it runs")
    if "no ring" in agent.output("rings"):
        pytest.skip("left out: no io_uring on this machine")
    refused = kybernate(agent, "pause", "rings", "--tier", "nvme")
    assert refused.returncode == Unsupported.exit_status
    assert "uses io_uring (start it without --io-uring" in refused.stderr
    assert kybernate(agent, "pause", "rings").returncode == 0, "RAM is open to it"
    agent.client.stop("rings", remove=True)
