"""What tiers cost in memory: of the agent for much that is stored, and of the whole machine while a workload goes down."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.agent.conftest import AgentProcess, MakeAgent
from tests.conftest import SLOWER, Eventually
from tests.store.rig import CHUNKS, OWN, PLAIN, many_snapshots

from kybernate.model.types import MIB, TierName, workload_name
from kybernate.process.tree import Tree, attach
from kybernate.store import Catalog, LocalMedium, Tier

pytestmark = [pytest.mark.root, pytest.mark.timeout(400 * SLOWER)]

LITTLE = 200 * MIB
SIZE = 256 * MIB
SNAPSHOTS = 3
"""Of 100 GiB each, 139 GiB without what is there twice."""


def memory(pid: int, what: str) -> int:
    """A line of /proc/PID/status in bytes; 0 where the process has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{what}:"):
                return int(line.split()[1]) << 10
    return 0


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def test_hundreds_of_gib_of_snapshots_cost_the_agent_little(make_agent: MakeAgent, tmp_path: Path) -> None:
    """Listed, verified, collected, moved and looked for through the agent: its highest RSS against that with an empty store.

    The chunks are small, their number and all that is kept of them is not: an agent never holds content of its own.
    """
    catalog = Catalog(tmp_path / "catalog.db")
    tier = Tier(LocalMedium(tmp_path / "store"), catalog, compress_below=0.0)
    tier.open()
    many_snapshots(tier.space(PLAIN), SNAPSHOTS)
    tier.close()
    catalog.close()
    empty = make_agent()
    base = memory(empty.pid, "VmHWM")
    agent = make_agent(store=f"{{directory: {tmp_path}/store}}")
    peaks = {"opened": memory(agent.pid, "VmHWM") - base}
    assert len(agent.client.snapshots().snapshots) == SNAPSHOTS
    [verified] = agent.client.verify()
    peaks["verified"] = memory(agent.pid, "VmHWM") - base
    assert (verified.chunks, verified.problems) == (CHUNKS - OWN + SNAPSHOTS * OWN, [])
    for snapshot in agent.client.snapshots().snapshots[1:]:
        agent.client.remove_snapshot(snapshot.name)
    [collected] = agent.client.collect()
    peaks["collected"] = memory(agent.pid, "VmHWM") - base
    assert collected.bytes_freed > 0
    [verified] = agent.client.verify()
    assert (verified.chunks, verified.problems) == (CHUNKS, [])
    peaks["idle"] = memory(agent.pid, "VmRSS") - base
    print({what: f"{size >> 20} MiB" for what, size in peaks.items()})
    assert max(peaks.values()) < LITTLE


@contextlib.contextmanager
def watched(agent: AgentProcess, name: str) -> Iterator[list[int]]:
    """The memory of the agent, of what works for it at a workload, and of the RAM disks it writes to, sampled all the time.

    Not the workload's own: what it has doesn't grow while it is frozen. Of the agent it is the kernel's own record of the peak.
    """
    tree = attach(agent.state.run_directory(workload_name(name)))
    host = Path("/proc/self/ns/mnt").readlink()
    assert Path(f"/proc/{tree.supervisor_pid}/ns/mnt").readlink() != host, "what follows would be the machine's own"
    samples: list[int] = []
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(0.002):
            samples.append(_with_helpers(tree) + _in_ram_disks(agent, tree))

    forget_peak(agent.pid)
    before = memory(agent.pid, "VmHWM") + _with_helpers(tree) + _in_ram_disks(agent, tree)
    found: list[int] = []
    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()
    found.append(memory(agent.pid, "VmHWM") + max(samples) - before)


def _with_helpers(tree: Tree) -> int:
    """Of the supervisor, and of who dumps."""
    return sum(memory(pid, "RssAnon") for pid in (tree.supervisor_pid, *tree.helpers()))


def _in_ram_disks(agent: AgentProcess, tree: Tree) -> int:
    """The pool's, and the workload's /dev/shm as its supervisor sees it: whoever helps may stand in the machine's."""
    used = 0
    for place in (agent.state.pool_mount, Path(f"/proc/{tree.supervisor_pid}/root/dev/shm")):
        with contextlib.suppress(OSError):
            blocks = sum(path.stat().st_blocks for path in place.rglob("*") if path.is_file())
            used += blocks * 512
    return used


@pytest.mark.parametrize("tier", [TierName.NVME, TierName.OBJECT])
def test_going_down_needs_no_second_copy_in_ram(
    make_agent: MakeAgent, bucket: Callable[..., str], eventually: Eventually, tier: TierName
) -> None:
    """Out of the pool's slots straight to the disk; to a bucket as many parts as are under way at once, whatever its size."""
    agent = make_agent(store=bucket(), pool=SIZE + 128 * MIB, gpu=SIZE + 128 * MIB)
    agent.run_cuda("one", bytes_=SIZE, noise=True)
    eventually(lambda: agent.steps("one") > 0, timeout_s=120, what="it computes")
    agent.client.pause("one")
    agent.client.pause("one")
    began = time.monotonic()
    with watched(agent, "one") as peak:
        report = agent.client.pause("one", tier=tier)
    assert report.bytes_stored > SIZE, "all of it was written"
    print(f"{tier}: {peak[0] >> 20} MiB more at the peak, of {SIZE >> 20} MiB, {time.monotonic() - began:.1f} s")
    assert peak[0] < SIZE / 2
    agent.client.resume("one")
    eventually(lambda: agent.steps("one") > 1, timeout_s=120, what="it goes on")
    agent.client.stop("one", remove=True)
