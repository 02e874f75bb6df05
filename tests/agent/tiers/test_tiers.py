"""Workloads below RAM, through a real agent: to the disk, to a real S3 server, and back; images and clones. The GPU is simulated.

The workloads compare all of their memory in every step, so each of these tests is one of exactness too.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from blake3 import blake3
from tests.agent.conftest import POOL, SIZE, AgentProcess, MakeAgent, goes_on, kybernate, started
from tests.agent.test_agent import as_nobody
from tests.conftest import SLOWER, Eventually
from tests.store.server import Mode, Proxy

from kybernate.cli.simulated import gpu_path
from kybernate.client import Client
from kybernate.cuda import simulated
from kybernate.engine.faults import VARIABLE
from kybernate.model.api import JobView, SnapshotRequest
from kybernate.model.errors import (
    AgentAway,
    BadInput,
    Busy,
    Conflict,
    KybernateError,
    NotFound,
    Unsupported,
    WorkloadLost,
)
from kybernate.model.types import MIB, TierName, WorkloadState, workload_name
from kybernate.process.connections import sockets_of
from kybernate.process.tree import BROKER_SOCKET, attach

pytestmark = [pytest.mark.root, pytest.mark.timeout(300 * SLOWER)]


@pytest.fixture(scope="module")
def lasting_agent(root: Path) -> Iterator[AgentProcess]:
    """Without a bucket, for tests that don't kill it: starting one takes longer than most of them."""
    place = root / "lasting"
    place.mkdir()
    settings = f"agent:\n  pool: {{size: {POOL}}}\n  arbiter: {{min_run: 0.2, settle: 0.2}}\n"
    agent = AgentProcess(place, settings=settings, simulated_gpu=True)
    agent.start()
    yield agent
    agent.end()
    agent.client.close()
    simulated.remove(gpu_path(agent.state))


@pytest.fixture
def agent(lasting_agent: AgentProcess, eventually: Eventually) -> Iterator[AgentProcess]:
    """The same, with nothing of the test left afterwards."""
    client = lasting_agent.client
    yield lasting_agent
    lasting_agent.stop_all()

    def gone() -> bool:
        """Parked ones are deleted in the background."""
        for view in client.snapshots().snapshots:
            if view.kind == "image":
                client.remove_snapshot(view.name)
        return not client.snapshots().snapshots

    eventually(gone, what="all snapshots are deleted")
    client.collect()
    node = client.node()
    assert node.pool is not None
    assert node.gpus[0].resident_bytes == 0
    assert [tier.used_bytes for tier in node.tiers] == [0]


def wipe_state(agent: AgentProcess) -> None:
    """As a reboot does to a state directory in RAM."""
    if agent.state.pool_mount.is_mount():
        subprocess.run(["umount", "-l", str(agent.state.pool_mount)], check=True)
    shutil.rmtree(agent.state.root)


def packs(agent: AgentProcess) -> list[Path]:
    return sorted(agent.state.root.with_name("s-store").glob("default/packs/*"))


def damage(agent: AgentProcess) -> None:
    for path in packs(agent):
        content = bytearray(path.read_bytes())
        for at in range(4096, len(content) - 4096, 4096):
            content[at] ^= 1
        path.write_bytes(content)


# -- to the disk and back ---------------------------------------------------------------------------------------------


def test_to_the_disk_and_back_by_the_command_line(agent: AgentProcess, eventually: Eventually) -> None:
    started(agent, eventually, "one")
    pids = agent.client.workload("one").pids
    paused = kybernate(agent, "pause", "one", "--tier", "nvme")
    assert paused.returncode == 0, paused.stderr
    assert "lies in nvme" in paused.stdout
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    node = agent.client.node()
    assert node.pool is not None
    assert (node.gpus[0].resident_bytes, node.pool.free_bytes) == (0, node.pool.size_bytes)
    table = kybernate(agent, "ps").stdout
    assert [line.split()[1:3] for line in table.splitlines() if line.startswith("one")] == [["paused", "nvme"]]
    assert "It lies in nvme" in kybernate(agent, "explain", "one").stdout
    assert "parked.one." in kybernate(agent, "snapshots").stdout
    again = agent.client.pause("one", tier=TierName.NVME)
    assert (again.already, again.tier) == (True, TierName.NVME)
    fetched = json.loads(kybernate(agent, "prefetch", "one", "--json").stdout)
    assert fetched["bytes_total"] == SIZE
    assert agent.client.workload("one").staged
    resumed = kybernate(agent, "resume", "one")
    assert resumed.returncode == 0, resumed.stderr
    assert "restored from nvme" in resumed.stdout
    goes_on(agent, eventually, "one")
    eventually(lambda: not agent.client.snapshots().snapshots, what="the snapshot of the state it has left is deleted")
    kinds = [event.kind for event in agent.client.events("one")]
    assert kinds == ["started", "paused", "parked", "staged", "restored", "resumed"]
    assert agent.client.collect()[0].bytes_freed > 0
    assert agent.client.verify()[0].problems == []


def test_one_that_waits_in_ram_goes_deeper(agent: AgentProcess, eventually: Eventually) -> None:
    started(agent, eventually, "one")
    agent.client.pause("one")
    moved = agent.client.move("one", TierName.NVME)
    assert (moved.tier, moved.already) == (TierName.NVME, False)
    assert agent.client.move("one", TierName.NVME).already
    agent.client.resume("one")
    goes_on(agent, eventually, "one")
    with pytest.raises(Conflict, match="running"):
        agent.client.move("one", TierName.NVME)


def test_a_new_agent_and_a_wiped_state_directory(make_agent: MakeAgent, eventually: Eventually) -> None:
    agent = make_agent()
    started(agent, eventually, "one")
    agent.client.pause("one", tier=TierName.NVME)
    agent.kill()
    agent.start()
    assert (agent.client.workload("one").state, agent.client.workload("one").tier) == (WorkloadState.PAUSED, "nvme")
    agent.kill()
    wipe_state(agent)
    agent.start()
    found = eventually(agent.client.workloads, what="what lies on the disk is found")
    assert [(view.name, view.state, view.tier) for view in found] == [("one", WorkloadState.PAUSED, "nvme")]
    assert agent.client.resume("one").tier is TierName.NVME
    eventually(lambda: agent.steps("one") > 2, timeout_s=60, what="it goes on")
    agent.client.stop("one", remove=True)


@pytest.mark.parametrize("step", ["capture.committed", "revive.restored", "revive.saved"])
def test_an_agent_killed_on_the_way(make_agent: MakeAgent, eventually: Eventually, step: str) -> None:
    """Either it lies in RAM with its processes, or in the store; a resume brings it back as it was, and nothing else is left."""
    agent = make_agent()
    started(agent, eventually, "one")
    going_down = step.startswith("capture")
    if not going_down:
        agent.client.pause("one", tier=TierName.NVME)
    agent.kill()
    agent.start(**{VARIABLE: f"{step}:kill"})
    with pytest.raises(KybernateError):
        agent.client.pause("one", tier=TierName.NVME) if going_down else agent.client.resume("one")
    agent.kill()
    agent.start()
    view = agent.client.workload("one")
    assert (view.state, view.tier) == (WorkloadState.PAUSED, "ram" if going_down else "nvme")
    agent.client.resume("one")
    goes_on(agent, eventually, "one")
    eventually(lambda: not agent.client.snapshots().snapshots, what="no snapshot is left")
    agent.client.stop("one", remove=True)
    node = agent.client.node()
    assert node.pool is not None
    assert (node.gpus[0].resident_bytes, node.pool.free_bytes) == (0, node.pool.size_bytes)


def test_one_that_an_agent_could_not_take_over_is_whole_for_the_next(
    agent: AgentProcess, eventually: Eventually
) -> None:
    started(agent, eventually, "one")
    agent.client.pause("one")
    agent.kill()
    broker_socket = agent.state.run_directory(workload_name("one")) / BROKER_SOCKET
    broker_socket.unlink()
    broker_socket.mkdir()  # nobody can listen there
    agent.start()
    assert "can't be taken over" in agent.client.workload("one").reason
    agent.end()
    broker_socket.rmdir()
    agent.start()
    view = agent.client.workload("one")
    assert (view.state, view.tier) == (WorkloadState.PAUSED, "ram"), view.reason
    agent.client.resume("one")
    goes_on(agent, eventually, "one")


def test_what_lies_on_the_disk_stays_there_when_it_is_stopped(agent: AgentProcess, eventually: Eventually) -> None:
    started(agent, eventually, "one")
    agent.client.pause("one", tier=TierName.NVME)
    stopped = kybernate(agent, "stop", "one")
    assert (stopped.returncode, stopped.stderr) == (0, "")
    assert "one: lies in nvme and stays there" in stopped.stdout
    assert "stop --remove one" in stopped.stdout
    with pytest.raises(Conflict, match="paused already"):
        started(agent, eventually, "one")
    agent.kill()
    agent.start()
    view = agent.client.workload("one")
    assert (view.state, view.tier, view.paused_by) == (WorkloadState.PAUSED, "nvme", "user")
    agent.client.resume("one")
    goes_on(agent, eventually, "one")


def test_one_that_is_removed_on_the_disk_leaves_nothing(agent: AgentProcess, eventually: Eventually) -> None:
    started(agent, eventually, "one")
    agent.client.pause("one", tier=TierName.NVME)
    agent.client.stop("one")
    assert agent.client.stop("one", remove=True).removed
    assert not agent.client.snapshots().snapshots
    started(agent, eventually, "one")


def test_no_copy_can_be_used(make_agent: MakeAgent, eventually: Eventually) -> None:
    """It says so and stays where it is; one that allows it is started anew."""
    agent = make_agent()
    started(agent, eventually, "dear")
    agent.client.pause("dear", tier=TierName.NVME)
    module = [sys.executable, "-m", "kybernate.benchmarks.workload", "--bytes", str(SIZE), "--seed", "7"]
    agent.run("cheap", *module, "--loop", "0.25", "--pace", "0.02", cold_start=True)
    eventually(lambda: agent.steps("cheap") > 2, timeout_s=60, what="cheap computes")
    agent.client.pause("cheap", tier=TierName.NVME)
    damage(agent)
    done = kybernate(agent, "resume", "dear")
    assert (done.returncode, done.stderr.count("\n")) == (WorkloadLost.exit_status, 1)
    assert "damaged" in done.stderr
    assert agent.client.workload("dear").state is WorkloadState.PAUSED
    assert "damaged" in agent.client.explain("dear").text
    assert kybernate(agent, "verify").returncode == 1
    report = agent.client.resume("cheap")
    assert "started anew" in (report.note or "")
    eventually(lambda: agent.steps("cheap") > 2, timeout_s=60, what="cheap computes again")
    assert "cold-start" in [event.kind for event in agent.client.events("cheap")]


def test_what_it_wrote_comes_along(agent: AgentProcess, tmp_path: Path, eventually: Eventually) -> None:
    """In a layer: the host's directory stays as it is, and RAM holds nothing of it meanwhile."""
    (tmp_path / "given").write_text("given")
    script = f"echo mine > {tmp_path}/own; while :; do cat {tmp_path}/own; echo step done; sleep 0.05; done"
    agent.run("writer", "sh", "-c", script, layers=[str(tmp_path)])
    eventually(lambda: agent.steps("writer") > 2, what="it writes")
    agent.client.pause("writer", tier=TierName.NVME)
    assert not (agent.state.run_directory(agent.client.workload("writer").name) / "layers").exists()  # type: ignore[arg-type]
    agent.client.resume("writer")
    goes_on(agent, eventually, "writer")
    assert agent.output("writer").splitlines()[-2:] in (["mine", "step done"], ["step done", "mine"])
    assert [path.name for path in tmp_path.iterdir()] == ["given"]


def test_the_pool_is_full(make_agent: MakeAgent, eventually: Eventually) -> None:
    """What was used least recently goes to the disk, if there is one; else the pause is refused."""
    agent = make_agent(pool=64 * MIB)
    started(agent, eventually, "first", size=48 * MIB)
    agent.client.pause("first")
    started(agent, eventually, "second", size=48 * MIB, seed=2)
    with pytest.raises(KybernateError, match="pool"):
        agent.client.pause("second")
    goes_on(agent, eventually, "second")
    started(agent, eventually, "third", size=8 * MIB, seed=3)
    agent.client.pause("third", tier=TierName.NVME)
    agent.client.pause("second")
    assert {view.name: view.tier for view in agent.client.workloads()} == {
        "first": "nvme",
        "second": "ram",
        "third": "nvme",
    }
    assert "make room for second" in agent.client.workload("first").reason
    agent.client.resume("first")
    assert agent.client.workload("second").tier == "nvme"
    goes_on(agent, eventually, "first")
    agent.client.resume("second")
    goes_on(agent, eventually, "second")


def test_one_that_waits_for_memory_goes_to_the_disk_and_waits_on_afterwards(root: Path, eventually: Eventually) -> None:
    place = root / "patient"
    place.mkdir()
    settings = f"agent:\n  pool: {{size: {POOL}}}\n  arbiter: {{min_run: 300, settle: 0.2}}\n"
    agent = AgentProcess(place, settings=settings, simulated_gpu=True, gpu_bytes=64 * MIB)
    agent.start()
    try:
        started(agent, eventually, "holder", size=40 * MIB)
        agent.run_cuda("waiter", bytes_=40 * MIB, seed=2)
        run_directory = agent.state.run_directory(workload_name("waiter"))

        def asks() -> bool:
            """The question stays open until there is room."""
            tree = attach(run_directory)
            return any(unix.peer and unix.kind == socket.SOCK_SEQPACKET for unix in sockets_of(tree).unix)

        eventually(asks, timeout_s=60, what="waiter asks for memory")
        view = agent.client.pause("waiter", tier=TierName.NVME)
        assert view.tier == "nvme"
        agent.client.stop("holder", grace_s=5, remove=True)
        agent.client.resume("waiter")
        eventually(lambda: agent.steps("waiter") > 2, timeout_s=60, what="waiter computes")
    finally:
        agent.stop_all()
        agent.end()
        agent.client.close()
        simulated.remove(gpu_path(agent.state))


def test_two_swaps_at_once_for_which_the_pool_has_room_one_after_the_other(
    make_agent: MakeAgent, eventually: Eventually
) -> None:
    """Whoever comes back gives its place in the pool up in a moment: nobody goes to the disk for that."""
    agent = make_agent(gpu=100 * MIB, pool=136 * MIB, KYBERNATE_SIMULATED_LINK_GIB_S="0.1")
    names = ("a", "b", "c", "d")
    for seed, name in enumerate(names, 1):
        started(agent, eventually, name, size=40 * MIB, seed=seed)
    for coming in (("a", "b"), ("c", "d")):
        with contextlib.ExitStack() as clients, ThreadPoolExecutor(2) as pool:
            each = [clients.enter_context(Client(agent.state.socket)) for _ in coming]
            list(pool.map(Client.resume, each, coming))
        for name in coming:
            goes_on(agent, eventually, name)
        assert {view.tier for view in agent.client.workloads() if view.name not in coming} == {"ram"}
    assert not {"parked", "restored"} & {event.kind for name in names for event in agent.client.events(name)}


def test_what_is_idle_for_long_goes_to_the_disk(make_agent: MakeAgent, eventually: Eventually) -> None:
    agent = make_agent(store="{demote: {idle: 1}}")
    started(agent, eventually, "one")
    agent.client.pause("one")
    eventually(lambda: agent.client.workload("one").tier == "nvme", timeout_s=20, what="it leaves RAM")
    agent.client.resume("one")
    goes_on(agent, eventually, "one")


def test_a_full_disk_refuses_and_loses_nothing(
    make_agent: MakeAgent, small_disk: Callable[..., Path], eventually: Eventually
) -> None:
    """On the way down it stays in RAM; on the way up it stays on the disk, and is never taken for lost and started anew."""
    disk = small_disk(480 * MIB)
    agent = make_agent(store=f"{{directory: {disk}/store}}")
    module = [sys.executable, "-m", "kybernate.benchmarks.workload", "--bytes", str(SIZE), "--seed", "7"]
    agent.run("one", *module, "--loop", "0.25", "--pace", "0.02", cold_start=True)
    eventually(lambda: agent.steps("one") > 2, timeout_s=60, what="it computes")
    agent.client.pause("one", tier=TierName.NVME)
    agent.client.resume("one")
    eventually(lambda: not agent.client.snapshots().snapshots, what="its snapshot is deleted")
    _fill(disk)
    refused = kybernate(agent, "pause", "one", "--tier", "nvme")
    assert (refused.returncode, refused.stderr.count("\n")) == (5, 1), refused.stderr
    assert any(word in refused.stderr for word in ("No space left", "room", "disk is full")), refused.stderr
    assert (agent.client.workload("one").state, agent.client.workload("one").tier) == (WorkloadState.PAUSED, "ram")
    _free(disk)
    agent.client.pause("one", tier=TierName.NVME)
    _fill(disk)
    refused = kybernate(agent, "resume", "one")
    assert (refused.returncode, refused.stderr.count("\n")) == (Busy.exit_status, 1), refused.stderr
    assert "No space left" in refused.stderr
    _free(disk)
    assert agent.client.resume("one").note == "restored from nvme"
    goes_on(agent, eventually, "one")
    agent.client.stop("one", remove=True)
    assert agent.client.verify()[0].problems == []


def _free(disk: Path) -> None:
    (disk / "full").unlink()
    os.sync()  # only then the blocks are free


def _fill(disk: Path) -> None:
    with (disk / "full").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        size = 1 << 20
        while True:
            try:
                file.write(bytes(size))
            except OSError:
                if size == 512:
                    raise
                size = 512 if size == 4096 else 4096


# -- to a bucket ------------------------------------------------------------------------------------------------------


def test_to_a_bucket_and_back_on_another_disk(
    first: AgentProcess, make_second: Callable[[], AgentProcess], eventually: Eventually
) -> None:
    """A second agent that has nothing but the bucket resumes it by its name; the first one is told that it has gone."""
    report = first.client.pause("one", tier=TierName.OBJECT)
    assert report.tier is TierName.OBJECT
    assert first.client.node().gpus[0].resident_bytes == 0
    second = make_second()
    with pytest.raises(NotFound):
        second.client.resume("another")
    assert second.client.workloads() == []
    done = kybernate(second, "resume", "one")
    assert done.returncode == 0, done.stderr
    assert "restored from object" in done.stdout
    eventually(lambda: second.steps("one") > 2, timeout_s=60, what="it goes on there")
    eventually(lambda: not second.client.snapshots().snapshots, what="its snapshot is deleted")
    with pytest.raises(WorkloadLost, match="has gone from every tier"):
        first.client.resume("one")
    assert first.client.workload("one").state is WorkloadState.PAUSED
    first.client.stop("one", remove=True)
    second.client.stop("one", remove=True)


def test_two_agents_do_not_resume_one_workload(
    first: AgentProcess, make_second: Callable[[], AgentProcess], eventually: Eventually
) -> None:
    """One that was killed in the middle keeps its claim, and goes on itself; another one may take over when told so."""
    first.client.pause("one", tier=TierName.OBJECT)
    first.kill()
    first.start(**{VARIABLE: "revive.restored:kill"})
    with pytest.raises(KybernateError):
        first.client.resume("one")
    second = make_second()
    with pytest.raises(Busy, match="claimed by the agent"):
        second.client.resume("one")
    first.kill()
    first.start()
    done = kybernate(second, "resume", "one", "--take-over")
    assert done.returncode == 0, done.stderr
    eventually(lambda: second.steps("one") > 2, timeout_s=60, what="it goes on there")
    eventually(lambda: not second.client.snapshots().snapshots, what="its snapshot is deleted")
    with pytest.raises(WorkloadLost):
        first.client.resume("one")
    second.client.stop("one")


def test_between_the_tiers(make_agent: MakeAgent, bucket: Callable[..., str], eventually: Eventually) -> None:
    """Moved, kept in both, verified; where the disk's copy is damaged the bucket's is taken, and that is said."""
    agent = make_agent(store=bucket())
    started(agent, eventually, "one")
    agent.client.pause("one", tier=TierName.NVME)
    moved = kybernate(agent, "move", "one", "--tier", "object")
    assert moved.returncode == 0, moved.stderr
    assert [view.tiers for view in agent.client.snapshots().snapshots] == [[TierName.OBJECT]]
    agent.client.move("one", TierName.NVME)
    agent.client.move("one", TierName.OBJECT, keep=True)
    assert [view.tiers for view in agent.client.snapshots().snapshots] == [[TierName.NVME, TierName.OBJECT]]
    assert [view.problems for view in agent.client.verify("one")] == [[], []]
    damage(agent)
    report = agent.client.resume("one")
    assert report.tier is TierName.OBJECT
    assert "nvme could not be used" in (report.note or "")
    goes_on(agent, eventually, "one")
    assert "restore-failed" in [event.kind for event in agent.client.events("one")]
    eventually(lambda: not agent.client.snapshots().snapshots, what="both copies are deleted")
    kybernate(agent, "gc")
    assert agent.client.verify()[0].problems == []


def test_a_bucket_that_does_not_answer(
    make_agent: MakeAgent, bucket: Callable[..., str], proxy: Proxy, eventually: Eventually
) -> None:
    """The order fails in one line, the workload waits in RAM; once the bucket answers all is well."""
    agent = make_agent(store=bucket(proxy.port))
    started(agent, eventually, "one")
    eventually(lambda: agent.client.node().tiers[1].state == "ready", what="the bucket is opened")
    proxy.set(Mode.REFUSE)
    done = kybernate(agent, "pause", "one", "--tier", "object")
    assert (done.returncode, done.stderr.count("\n")) == (3, 1), done.stderr
    view = agent.client.workload("one")
    assert (view.state, view.tier) == (WorkloadState.PAUSED, "ram")
    assert "can't be used" in kybernate(agent, "ps").stdout
    proxy.set(Mode.PASS)
    agent.client.pause("one", tier=TierName.OBJECT)
    proxy.set(Mode.ERROR)
    with pytest.raises(KybernateError) as caught:
        agent.client.resume("one")
    assert caught.value.exit_status == 3
    assert agent.client.workload("one").tier == "object"
    proxy.set(Mode.PASS)
    agent.client.resume("one")
    goes_on(agent, eventually, "one")


def test_a_wrong_key_and_a_wiped_disk(make_agent: MakeAgent, tmp_path: Path, eventually: Eventually) -> None:
    key = tmp_path / "key"
    key.write_text("11" * 32)
    key.chmod(0o600)
    agent = make_agent(store=f"{{encryption: {{key_file: {key}}}}}")
    started(agent, eventually, "one")
    agent.client.pause("one", tier=TierName.NVME)
    assert agent.client.node().tiers[0].encrypted
    agent.kill()
    key.write_text("22" * 32)
    agent.start()
    with pytest.raises(BadInput, match="wrong key"):
        agent.client.resume("one")
    agent.kill()
    key.write_text("11" * 32)
    directory = agent.state.root.with_name("s-store")
    directory.rename(directory.with_name("aside"))
    agent.start()
    with pytest.raises(BadInput, match="it held 1 snapshots"):
        agent.client.resume("one")
    agent.kill()
    shutil.rmtree(directory, ignore_errors=True)
    directory.with_name("aside").rename(directory)
    agent.start()
    agent.client.resume("one")
    goes_on(agent, eventually, "one")


def newer(path: Path, *, pack: bool) -> None:
    """As a later version of the format will begin."""
    content = bytearray(path.read_bytes())
    content[8:12] = struct.pack("<I", 99)
    if pack:
        content[48:80] = blake3(bytes(content[:48])).digest()
    path.write_bytes(content)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("kind", "spoil", "says", "lasts"),
    [
        pytest.param("manifests", lambda path: os.truncate(path, 100), "damaged", False, id="truncated manifest"),
        pytest.param("manifests", flip_a_bit, "damaged", False, id="corrupt manifest"),
        pytest.param("manifests", lambda path: newer(path, pack=False), "update Kybernate", True, id="newer manifest"),
        pytest.param("packs", lambda path: os.truncate(path, 5000), "damaged", False, id="truncated pack"),
        pytest.param("packs", Path.unlink, "damaged", False, id="deleted pack"),
        pytest.param("packs", lambda path: newer(path, pack=True), "update Kybernate", True, id="newer pack"),
    ],
)
def test_what_is_wrong_with_a_snapshot_is_said_and_nothing_changed(
    make_agent: MakeAgent,
    eventually: Eventually,
    kind: str,
    spoil: Callable[[Path], None],
    says: str,
    lasts: bool,
) -> None:
    """In one line; the workload stays where it lies, and comes back once the files are as they were. A workload that may be
    started anew is that only where its state is lost, not where a newer version has it."""
    agent = make_agent()
    module = [
        sys.executable,
        "-m",
        "kybernate.benchmarks.workload",
        "--bytes",
        str(8 * MIB),
        "--noise",
        "--loop",
        "0.25",
    ]
    agent.run("one", *module, "--pace", "0.02", cold_start=lasts)
    eventually(lambda: agent.steps("one") > 2, timeout_s=60, what="it computes")
    agent.client.pause("one", tier=TierName.NVME)
    before = agent.client.workload("one")
    agent.kill()
    if lasts:  # what one agent has read it remembers
        agent.state.root.with_name("s-store.db").unlink()
    files = sorted(agent.state.root.with_name("s-store").glob(f"default/{kind}/*"))
    kept = {path: path.read_bytes() for path in files}
    for path in files:
        spoil(path)
    agent.start()
    done = kybernate(agent, "resume", "one")
    assert done.returncode not in (0, 1), done
    assert done.stderr.count("\n") == 1, done.stderr
    assert says in done.stderr
    verified = kybernate(agent, "verify")
    assert (verified.returncode, "Traceback" in verified.stderr) == (1, False), verified
    after = agent.client.workload("one")
    assert (after.state, after.tier, after.snapshot) == (before.state, before.tier, before.snapshot)
    agent.kill()
    for path, content in kept.items():
        path.write_bytes(content)
    agent.state.root.with_name("s-store.db").unlink()
    agent.start()
    assert agent.client.resume("one").note == "restored from nvme"
    goes_on(agent, eventually, "one")
    agent.client.stop("one", remove=True)
    agent.client.collect()
    assert agent.client.verify()[0].problems == []


def test_a_bucket_that_is_not_there(make_agent: MakeAgent, bucket: Callable[..., str], eventually: Eventually) -> None:
    """The agent starts, says it, and works without; so does the order that needs it."""
    agent = make_agent(store=bucket().replace("s3://b-", "s3://no-such-"))
    started(agent, eventually, "one", size=8 * MIB)
    refused = kybernate(agent, "pause", "one", "--tier", "object")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
    assert "there is no bucket at s3://no-such-" in refused.stderr
    assert agent.client.workload("one").state is WorkloadState.RUNNING
    assert "there is no bucket" in (agent.client.node().tiers[1].problem or "")
    agent.client.pause("one", tier=TierName.NVME)
    agent.client.resume("one")
    goes_on(agent, eventually, "one")
    agent.client.stop("one", remove=True)


def test_a_name_that_is_taken(agent: AgentProcess, eventually: Eventually) -> None:
    started(agent, eventually, "one", size=8 * MIB)
    agent.client.snapshot("one", SnapshotRequest.of(image="gold"))
    steps = [event.kind for event in agent.client.events("one")]
    for words in (["snapshot", "one", "--as", "gold"], ["clone", "gold", "one"]):
        refused = kybernate(agent, *words)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
        assert "already" in refused.stderr
    assert [event.kind for event in agent.client.events("one")] == steps
    goes_on(agent, eventually, "one")


# -- images and clones ------------------------------------------------------------------------------------------------

SERVER = """
import http.server, os, sys, threading
from kybernate.benchmarks.driver import Driver

driver = Driver()
held = driver.allocate(4 << 20)
driver.call("cuMemsetD32_v2", held, 7, 1 << 20)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(os.uname().nodename.encode())

    def log_message(self, *_):
        pass


print("listens", flush=True)
http.server.HTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
"""


def test_an_image_and_its_clones(agent: AgentProcess, eventually: Eventually) -> None:
    agent.run("server", sys.executable, "-c", SERVER)
    taken = kybernate(agent, "snapshot", "server", "--as", "gold", "--ready", "8000/health", "--ready-timeout", "60")
    assert taken.returncode == 0, taken.stderr
    assert agent.client.workload("server").state is WorkloadState.RUNNING
    made = kybernate(agent, "clone", "gold", "replica", "-n", "4")
    assert made.returncode == 0, made.stderr
    assert made.stdout.count("running") == 4
    for number in range(1, 5):
        answered = SnapshotRequest.of(image=f"of-{number}", ready="8000/", ready_timeout_s=60)
        agent.client.snapshot(f"replica-{number}", answered)  # each answers on its own port 8000
        view = agent.client.workload(f"replica-{number}")
        assert (view.state, view.image) == (WorkloadState.RUNNING, "gold")
        assert view.argv[-1] == SERVER
    one = agent.client.clone("gold", "single")
    assert [each.workload for each in one.clones] == ["single"]
    assert agent.client.collect(dry_run=True)[0].bytes_freed == 0
    assert agent.client.remove_snapshot("gold").snapshot == "gold"
    with pytest.raises(NotFound):
        agent.client.clone("gold", "more")


def test_twenty_clones_wait_for_their_turn(agent: AgentProcess, eventually: Eventually) -> None:
    """More than fit: those that don't wait, and come as soon as there is room."""
    started(agent, eventually, "one")
    agent.client.snapshot("one", SnapshotRequest.of(image="gold"))
    agent.client.stop("one", remove=True)
    made = agent.client.clone("gold", "c", count=20, timeout_s=5)
    assert len(made.clones) == 20
    states = [each.state for each in made.clones]
    assert set(states) == {WorkloadState.RUNNING, WorkloadState.PAUSED}
    assert states.count(WorkloadState.RUNNING) >= 5
    seen: set[str] = set()
    while len(seen) < 20:
        running = [w.name for w in agent.client.workloads() if w.state is WorkloadState.RUNNING and w.name not in seen]
        for name in running:
            eventually(lambda name=name: agent.steps(name) > 1, timeout_s=60, what=f"{name} computes")
            agent.client.stop(name)
            seen.add(name)
        if not running:
            eventually(
                lambda: any(w.state is WorkloadState.RUNNING for w in agent.client.workloads()),
                timeout_s=60,
                what="others follow",
            )


def test_a_clone_can_be_parked_and_imaged(agent: AgentProcess, eventually: Eventually) -> None:
    started(agent, eventually, "one")
    agent.client.snapshot("one", SnapshotRequest.of(image="gold"))
    agent.client.clone("gold", "two")
    eventually(lambda: agent.steps("two") > 2, timeout_s=60, what="it computes")
    agent.client.pause("two", tier=TierName.NVME)
    agent.client.resume("two")
    goes_on(agent, eventually, "two")
    agent.client.snapshot("two", SnapshotRequest.of(image="silver"))
    agent.client.clone("silver", "three")
    eventually(lambda: agent.steps("three") > 2, timeout_s=60, what="it computes")


def test_an_agent_killed_while_it_takes_an_image(make_agent: MakeAgent, eventually: Eventually) -> None:
    agent = make_agent()
    started(agent, eventually, "one")
    agent.kill()
    agent.start(**{VARIABLE: "capture.written:kill"})
    with pytest.raises(KybernateError):
        agent.client.snapshot("one", SnapshotRequest.of(image="gold"))
    agent.kill()
    agent.start()
    eventually(lambda: agent.client.workload("one").state is WorkloadState.RUNNING, what="it goes on by itself")
    goes_on(agent, eventually, "one")
    assert agent.client.snapshots().snapshots == []


def test_a_command_says_when_it_is_ready(agent: AgentProcess, tmp_path: Path, eventually: Eventually) -> None:
    """It runs among the workload's processes, as its user; what the environment names is never run by root."""
    tmp_path.chmod(0o777)
    agent.run("one", "sh", "-c", "sleep 600 & wait", environment={"PATH": f"{tmp_path}:/usr/bin:/bin", "MINE": "yes"})
    ready = 'test "$MINE" = yes && test "$(hostname)" = one && test "$(id -u)" = 0 && test -z "$LD_PRELOAD"'
    taken = kybernate(agent, "snapshot", "one", "--as", "gold", "--ready-command", f"sh -c '{ready}'")
    assert taken.returncode == 0, taken.stderr
    refused = kybernate(
        agent, "snapshot", "one", "--as", "silver", "--ready-command", "no-such-command", "--ready-timeout", "0.2"
    )
    assert (refused.returncode, refused.stderr.count("\n")) == (3, 1)
    assert "No such file" in refused.stderr


def test_another_user_s_snapshots_are_not_one_s_own(agent: AgentProcess, eventually: Eventually) -> None:
    agent.state.socket.chmod(0o666)
    for directory in (agent.state.root, agent.state.root.parent, agent.state.root.parents[1]):
        directory.chmod(0o755)
    started(agent, eventually, "one")
    agent.client.snapshot("one", SnapshotRequest.of(image="gold"))
    agent.client.pause("one", tier=TierName.NVME)
    parked = agent.client.workload("one").snapshot
    orders: tuple[tuple[str, str, dict[str, object]], ...] = (
        ("POST", "/v1/workloads/one/prefetch", {}),
        ("POST", "/v1/workloads/one/resume", {}),
        ("POST", "/v1/workloads/one/snapshot", {"image": "mine"}),
        ("POST", "/v1/snapshots/gold/clone", {"name": "mine"}),
        ("POST", "/v1/snapshots/gold/move", {"tier": "ram"}),
        ("POST", "/v1/snapshots/one/move", {"tier": "ram"}),
        ("DELETE", "/v1/snapshots/gold", {}),
        ("POST", "/v1/store/verify", {}),
        ("POST", "/v1/store/verify", {"names": ["gold"]}),
        ("POST", "/v1/store/gc", {}),
    )
    for method, path, body in orders:
        assert " 403 " in as_nobody(agent, path, body, method=method).splitlines()[0], path
    with pytest.raises(Conflict, match="lies in it"):
        agent.client.remove_snapshot(parked or "")
    assert agent.client.resume("one").tier is TierName.NVME


# -- how far it is ------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(400 * SLOWER)  # the bucket is slow on purpose
# The watcher may ask at the very moment the agent is killed: httpx2 leaves its socket open when connecting fails.
@pytest.mark.filterwarnings("ignore:.*socket.socket:pytest.PytestUnraisableExceptionWarning")
def test_every_long_step_says_how_far_it_is(
    make_agent: MakeAgent, bucket: Callable[..., str], proxy: Proxy, eventually: Eventually
) -> None:
    """Bytes, rate and time left: in the API for each kind of step, and on a terminal."""
    agent = make_agent(store=bucket(proxy.port, patience_s=60))
    agent.run_cuda("one", bytes_=SIZE, noise=True)
    eventually(lambda: agent.steps("one") > 2, timeout_s=60, what="it computes")
    eventually(lambda: agent.client.node().tiers[1].state == "ready", what="the bucket is opened")
    proxy.set(Mode.SLOW, bytes_per_s=10 * MIB)  # of each connection
    seen: dict[str, JobView] = {}
    ended = threading.Event()

    def look() -> None:
        with Client(agent.state.socket) as client:
            while not ended.wait(0.01):
                with contextlib.suppress(AgentAway):
                    for job in client.jobs():
                        if job.bytes_done and job.bytes_per_s and job.seconds_left is not None:
                            seen[job.kind] = job

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        shown = on_a_terminal(agent, "snapshot", "one", "--as", "gold", "--tier", "object")
        assert "/s, " in shown, shown
        assert " s left" in shown, shown
        agent.kill()
        agent.start()  # one that has nothing of the image in RAM
        agent.client.clone("gold", "two")
        agent.client.stop("two", remove=True)
        agent.client.pause("one", tier=TierName.OBJECT)
        agent.client.prefetch("one")
        assert " s left" in on_a_terminal(agent, "move", "one", "--tier", "nvme")
        agent.client.move("one", TierName.OBJECT)
        assert " s left" in on_a_terminal(agent, "verify")
        assert " s left" in on_a_terminal(agent, "resume", "one")
        agent.client.remove_snapshot("gold")
        agent.client.collect()
    finally:
        ended.set()
        watcher.join()
    assert set(seen) >= {"snapshot", "clone", "park", "stage", "move", "verify", "restore"}
    for job in seen.values():
        assert job.step
        assert 0 < (job.bytes_done or 0) <= (job.bytes_total or 0)


def on_a_terminal(agent: AgentProcess, *words: str) -> str:
    """What a person sees."""
    master, slave = pty.openpty()
    os.set_blocking(master, False)
    command = [sys.executable, "-m", "kybernate.cli", words[0], "--state-dir", str(agent.state.root), *words[1:]]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "160"}
    shown = b""
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment) as process:
        os.close(slave)
        poller = select.poll()
        poller.register(master, select.POLLIN)
        with contextlib.suppress(OSError):  # the other end is closed
            while poller.poll(90_000) and (piece := os.read(master, 1 << 16)):
                shown += piece
    os.close(master)
    assert process.returncode == 0, shown.decode()
    return shown.decode()


# -- nonsense ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        pytest.param(["pause", "x", "--tier", "vram"], "vram", id="no such tier"),
        pytest.param(["pause", "--pid", "4", "--tier", "nvme"], "stays in RAM", id="not ours"),
        pytest.param(["pause", "x", "--tier", "nvme", "--connections", "drop"], "drop", id="connections"),
        pytest.param(["move", "x"], "--tier", id="where to"),
        pytest.param(["move", "../x", "--tier", "nvme"], "bad snapshot name", id="path"),
        pytest.param(["snapshot", "x"], "--as", id="as what"),
        pytest.param(["snapshot", "x", "--as", "A"], "A", id="bad image name"),
        pytest.param(["snapshot", "x", "--as", "parked.x"], "parked.x", id="not an image's name"),
        pytest.param(["snapshot", "x", "--as", "a", "--ready-command", "'"], "quotes", id="quotes"),
        pytest.param(["clone", "gold", "Bad"], "Bad", id="bad name"),
        pytest.param(["clone", "gold", "x", "-n", "0"], "count", id="none"),
        pytest.param(["clone", "gold", "pid", "-n", "3"], "not started by Kybernate", id="external name"),
        pytest.param(["clone", "nothing", "x"], "no snapshot nothing", id="no image"),
        pytest.param(["rm-snapshot", "a/../b"], "bad snapshot name", id="path to remove"),
        pytest.param(["rm-snapshot", "nothing"], "no snapshot nothing", id="nothing to remove"),
        pytest.param(["verify", "nothing"], "no snapshot nothing", id="nothing to verify"),
        pytest.param(["gc", "--accept-loss"], "--tier", id="whose loss"),
        pytest.param(["prefetch", "nobody"], "no workload named", id="nobody"),
        pytest.param(["resume", "nobody"], "no workload named", id="nobody to resume"),
        pytest.param(["run", "x", "--layer", "/", "--", "true"], "layer", id="layer over all"),
    ],
)
def test_nonsense_is_one_line_and_status_2(lasting_agent: AgentProcess, words: list[str], says: str) -> None:
    done = kybernate(lasting_agent, *words)
    assert done.returncode == 2, done
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_what_can_not_be_parked_is_refused_beforehand(agent: AgentProcess, eventually: Eventually) -> None:
    """One that shares the host's processes can't be dumped: said before anything was done to it."""
    agent.run("open", "sleep", "60", isolated=False)
    refused = kybernate(agent, "pause", "open", "--tier", "nvme")
    assert (refused.returncode, refused.stderr.count("\n")) == (Unsupported.exit_status, 1), refused
    assert [event.kind for event in agent.client.events("open")] == ["started"]
    with pytest.raises(Unsupported, match="dumped"):
        agent.client.snapshot("open", SnapshotRequest.of(image="gold"))
    eventually(lambda: agent.client.workload("open").state is WorkloadState.RUNNING, what="it runs on")
    with pytest.raises(Unsupported, match="no object tier"):
        agent.client.pause("open", tier=TierName.OBJECT)
    agent.run("ends", "sh", "-c", "sleep 0.3")
    with pytest.raises((WorkloadLost, Busy, Conflict)):
        agent.client.snapshot("ends", SnapshotRequest.of(image="gold", ready="9/", ready_timeout_s=20))
