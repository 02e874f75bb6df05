"""Freezing and thawing whole trees, by cgroup and by SIGSTOP: all of it, only it, and back again when it fails."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from tests.conftest import Eventually
from tests.process.conftest import Workloads, main_of

from kybernate.model.errors import Busy, Conflict
from kybernate.process import namespaces, procfs
from kybernate.process.tree import Tree, attach

pytestmark = pytest.mark.root

BUSY_TREE = """
import os, sys, time
for _ in range(3): os.fork()
print("up", flush=True)
while True:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
"""


def state_of(pid: int | None) -> str | None:
    found = None if pid is None else procfs.stat(pid)
    return None if found is None else found.state


def cpu_ticks(pids: Iterable[int]) -> int:
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total


@pytest.mark.parametrize("isolated", [True, False])
def test_a_busy_tree_stands_still_and_goes_on(
    workloads: Workloads, eventually: Eventually, output: Callable[[Tree], str], isolated: bool
) -> None:
    tree = workloads.python(BUSY_TREE, isolated=isolated)
    eventually(lambda: output(tree).count("up") == 8)
    for _ in range(10):
        tree.freeze(10)
        assert tree.frozen
        pids = tree.pids()
        assert len(pids) >= 8
        before = cpu_ticks(pids)
        deadline = time.monotonic() + 0.05
        while time.monotonic() < deadline:
            assert tree.pids() == pids
        assert cpu_ticks(pids) == before
        tree.thaw()
        assert not tree.frozen
        eventually(lambda pids=pids: tree.pids() != pids)


@pytest.mark.parametrize("isolated", [True, False])
def test_threads_stand_still(workloads: Workloads, eventually: Eventually, isolated: bool, tmp_path: Path) -> None:
    counters = tmp_path / "counters"
    counters.write_bytes(bytes(64))
    program = """
import mmap, os, sys, threading
memory = memoryview(mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 64)).cast("Q")
def count(index):
    while True: memory[index] += 1
for index in range(8): threading.Thread(target=count, args=(index,)).start()
"""
    tree = workloads.python(program, str(counters), isolated=isolated)

    def all_moved_since(before: list[int]) -> bool:
        return all(new > old for new, old in zip(values(), before, strict=True))

    def values() -> list[int]:
        return list(memoryview(counters.read_bytes()).cast("Q"))

    eventually(lambda: all_moved_since([0] * 8))
    tree.freeze()
    standing = values()
    deadline = time.monotonic() + 0.1
    while time.monotonic() < deadline:
        assert values() == standing
    tree.thaw()
    eventually(lambda: all_moved_since(standing))


def test_the_supervisor_never_freezes(workloads: Workloads) -> None:
    tree = workloads.launch("sleep", "100")
    tree.freeze()
    assert state_of(tree.supervisor_pid) == "S"
    tree.signal(signal.SIGTERM)
    assert tree.exit() is None  # a frozen process gets its signals later
    tree.thaw()
    assert tree.wait(60) == 143


@pytest.mark.parametrize("isolated", [True, False])
def test_freezing_and_thawing_twice(workloads: Workloads, isolated: bool) -> None:
    tree = workloads.launch("sleep", "100", isolated=isolated)
    tree.thaw()
    tree.freeze()
    tree.freeze()
    assert tree.frozen
    assert attach(tree.run_directory).frozen
    tree.thaw()
    tree.thaw()
    assert not tree.frozen


@pytest.mark.parametrize("isolated", [True, False])
def test_a_frozen_tree_can_be_killed(workloads: Workloads, isolated: bool) -> None:
    tree = workloads.shell("sleep 100 & sleep 100 & wait", isolated=isolated)
    tree.freeze()
    tree.kill()
    assert tree.wait(60) == 137
    assert tree.pids() == []


@pytest.mark.parametrize("isolated", [True, False])
def test_what_has_ended_can_not_be_frozen(workloads: Workloads, isolated: bool) -> None:
    tree = workloads.launch("true", isolated=isolated)
    tree.wait(60)
    with pytest.raises(Conflict, match="has ended"):
        tree.freeze()
    tree.thaw()
    assert not tree.frozen or isolated  # an empty cgroup says frozen once it was


def test_a_stopped_process_counts_as_frozen(workloads: Workloads, eventually: Eventually) -> None:
    tree = workloads.launch("sleep", "100")
    os.kill(main_of(tree), signal.SIGSTOP)
    eventually(lambda: state_of(tree.main_pid()) == "T")
    tree.freeze()
    assert tree.frozen
    tree.thaw()
    assert state_of(tree.main_pid()) == "T"


@pytest.fixture
def stuck_file_system(tmp_path: Path) -> Iterator[Path]:
    """A FUSE mount whose server never answers: who touches it waits in the kernel, uninterruptibly."""
    if not Path("/dev/fuse").exists():
        pytest.skip("needs /dev/fuse")
    point = tmp_path / "stuck"
    point.mkdir()
    descriptor = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={descriptor},rootmode=40000,user_id=0,group_id=0,allow_other"
    namespaces.mount("stuck", str(point), "fuse", 0, options)
    yield point
    os.close(descriptor)
    namespaces.detach_mount(str(point))


def waits_for_the_file_system(pid: int) -> bool:
    place = Path(f"/proc/{pid}/wchan").read_text()
    return "fuse" in place or place == "request_wait_answer"


@pytest.mark.parametrize("isolated", [True, False])
def test_what_does_not_freeze_in_time_runs_on(
    workloads: Workloads, eventually: Eventually, stuck_file_system: Path, isolated: bool, output: Callable[[Tree], str]
) -> None:
    script = f"(stat {stuck_file_system}/file; echo unstuck) & while :; do :; done"
    tree = workloads.shell(script, isolated=isolated)
    eventually(lambda: any(waits_for_the_file_system(pid) for pid in tree.pids()))
    with pytest.raises(Busy, match=r"did not (freeze|stop) within 0.3 s.*process"):
        tree.freeze(0.3)
    assert not tree.frozen
    before = cpu_ticks([main_of(tree)])
    eventually(lambda: cpu_ticks([main_of(tree)]) > before, what="the rest of the tree runs on")


def test_many_freezes_from_several_threads(workloads: Workloads) -> None:
    tree = workloads.python(BUSY_TREE)
    failures: list[Busy] = []

    def freeze_and_thaw() -> None:
        for _ in range(20):
            try:
                tree.freeze(10)
            except Busy as e:  # the other thread's thaw came in between, and the time was over
                failures.append(e)
            tree.thaw()

    threads = [threading.Thread(target=freeze_and_thaw) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not tree.frozen
    assert tree.alive


def test_a_freeze_leaves_nobody_in_the_middle_of_a_birth(workloads: Workloads, eventually: Eventually) -> None:
    """A parent that waits for its vfork()ed child can't be dumped while that one stands still."""
    program = "import subprocess\nprint('ready', flush=True)\nwhile True: subprocess.run(['/bin/true'])"
    tree = workloads.python(program)
    eventually(lambda: "ready" in (tree.run_directory / "output.log").read_text())
    for _ in range(30):
        tree.freeze()
        waiting = [
            pid
            for pid in tree.pids()
            for task in Path(f"/proc/{pid}/task").iterdir()
            if (task / "wchan").read_text() in ("kernel_clone", "wait_for_vfork_done", "_do_fork")
        ]
        tree.thaw()
        assert waiting == []
