"""Connections that are full when their program is dumped: not a byte is lost, and where that can't be promised it is refused."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Eventually
from tests.process.conftest import Workloads, group_of

from kybernate.model.errors import Busy, Unsupported
from kybernate.model.types import WorkloadName
from kybernate.process import criu_images, network_lock
from kybernate.process.dumping import dump
from kybernate.process.preflight import dumpable
from kybernate.process.restoring import restore
from kybernate.process.specs import Network
from kybernate.process.tree import CONTROL, Tree

from .dumps import FEATURES, feature, finish, output, wait_ready

pytestmark = pytest.mark.root

ASKED = """
import os, socket, sys, time
control = os.environ["KYBERNATE_RUN_DIRECTORY"] + "/control"
receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiver.bind(("127.0.0.1", 0))
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
peer = server.accept()[0]
print("ready", flush=True)
number = 0
while True:
    if os.path.exists(f"{control}/{number}"):
        try:
            sender.sendto(b"x", receiver.getsockname())
            print(number, "sent", flush=True)
        except PermissionError:
            print(number, "dropped", flush=True)
        client.send(b"y")
        number += 1
        if number == 3:
            break
    time.sleep(0.01)
assert receiver.recv(10) == b"x"
got = b""
while len(got) < 3:
    got += peer.recv(10)
print("all there", flush=True)
"""
HOLDER = """
import sys, time
from kybernate.process import network_lock
from kybernate.model.types import WorkloadName
lock = network_lock.hold(sys.argv[1])
print("held", flush=True)
time.sleep(1000)
"""
_ATTACH, _DETACH = 8, 9


@contextlib.contextmanager
def kept_to_itself(cgroup: Path) -> Iterator[None]:
    """A cgroup whose packets are filtered by somebody who lets nobody else do so below it."""
    program = network_lock._load(network_lock._everything())
    directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    for where in (0, 1):
        attach(_ATTACH, directory, program, where)
    try:
        yield
    finally:
        for where in (0, 1):
            attach(_DETACH, directory, program, where)
        os.close(directory)
        os.close(program)


def attach(command: int, directory: int, program: int, where: int) -> None:
    """It answers 0, which is no descriptor."""
    assert network_lock._bpf(command, directory, program, where, 0) == 0


def full(workloads: Workloads, eventually: Eventually, **fields: Any) -> Tree:
    tree = workloads.launch(*feature("saturated"), directory=FEATURES, **fields)
    wait_ready(tree, eventually)
    return tree


def test_packets_are_held_back_and_come_afterwards(workloads: Workloads, eventually: Eventually) -> None:
    tree = workloads.python(ASKED)
    wait_ready(tree, eventually)
    lock = network_lock.hold(group_of(tree))
    (tree.run_directory / CONTROL / "0").touch()
    eventually(lambda: "0 dropped" in output(tree))
    lock.close()
    lock.close()
    (tree.run_directory / CONTROL / "1").touch()
    eventually(lambda: "1 sent" in output(tree))
    (tree.run_directory / CONTROL / "2").touch()
    assert tree.wait(60) == 0, output(tree)
    assert "all there" in output(tree), "TCP has sent it again"


def test_a_neighbour_s_packets_go_on(workloads: Workloads, eventually: Eventually) -> None:
    trees = [workloads.python(ASKED, name=name, network=Network.HOST) for name in ("one", "two")]
    for tree in trees:
        wait_ready(tree, eventually)
    with contextlib.closing(network_lock.hold(group_of(trees[0]))):
        for tree in trees:
            (tree.run_directory / CONTROL / "0").touch()
        eventually(lambda: "0 dropped" in output(trees[0]))
        eventually(lambda: "0 sent" in output(trees[1]))


def test_the_lock_goes_with_whoever_holds_it(workloads: Workloads, eventually: Eventually) -> None:
    tree = workloads.python(ASKED)
    wait_ready(tree, eventually)
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tree.cgroup)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    with holder:
        assert holder.stdout.readline() == b"held\n"
        (tree.run_directory / CONTROL / "0").touch()
        eventually(lambda: "0 dropped" in output(tree))
        holder.send_signal(signal.SIGKILL)
    for number in (1, 2):
        (tree.run_directory / CONTROL / str(number)).touch()
    assert tree.wait(60) == 0, output(tree)
    assert "1 sent" in output(tree)


def test_a_dump_has_unsent_bytes_and_leaves_every_one_to_the_program(
    workloads: Workloads, eventually: Eventually, tmp_path: Path
) -> None:
    tree = full(workloads, eventually)
    assert dumpable(tree) == []
    dump(tree, tmp_path / "images")
    assert criu_images.unsent(tmp_path / "images") > 0
    finish(tree)


def test_full_connections_in_the_host_s_network(
    workloads: Workloads, elsewhere: Workloads, eventually: Eventually, tmp_path: Path
) -> None:
    tree = full(workloads, eventually, network=Network.HOST)
    dump(tree, tmp_path / "images", hold=True)
    assert criu_images.unsent(tmp_path / "images") > 0
    tree.remove()
    run_directory = elsewhere.state_directory / "workloads/again"
    elsewhere.trees.append(restore(tmp_path / "images", name=WorkloadName("again"), run_directory=run_directory).tree)
    finish(elsewhere.trees[0])


def test_where_packets_can_not_be_held_back_a_full_connection_is_refused(
    workloads: Workloads, eventually: Eventually, tmp_path: Path
) -> None:
    tree = full(workloads, eventually)
    with kept_to_itself(group_of(tree).parents[1]):
        found = dumpable(tree)
        assert found
        assert len(found) == 2, "one a process"
        assert all("bytes to send in " in line and "connections until the other end reads" in line for line in found)
        assert all("can't hold packets back meanwhile (Operation not permitted; see" in line for line in found)
        with pytest.raises(Unsupported, match=r"workload work can't be dumped: process 100[01] .* bytes to send"):
            dump(tree, tmp_path / "images")
    assert not tree.frozen
    assert list(tmp_path.iterdir()) == []
    finish(tree)


EMPTY = """
import os, socket, time
control = os.environ["KYBERNATE_RUN_DIRECTORY"] + "/control"
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
peer = server.accept()[0]
client.setblocking(False)
print("ready", flush=True)
while not os.path.exists(control + "/go"): time.sleep(0.01)
"""


def test_where_packets_can_not_be_held_back_what_has_nothing_to_send_is_dumped_all_the_same(
    workloads: Workloads, eventually: Eventually, tmp_path: Path
) -> None:
    tree = workloads.python(EMPTY)
    wait_ready(tree, eventually)
    workloads.shell("sleep 1000", name="other")  # else the group goes with the first
    with kept_to_itself(group_of(tree).parents[1]):
        assert dumpable(tree) == []
        dump(tree, tmp_path / "images", hold=True)
        tree.remove()
        again = restore(tmp_path / "images", name=WorkloadName("work"), run_directory=tree.run_directory).tree
        workloads.trees.append(again)
    finish(again)


def test_where_packets_can_not_be_held_back_a_restore_of_full_connections_is_refused(
    workloads: Workloads, elsewhere: Workloads, eventually: Eventually, tmp_path: Path
) -> None:
    tree = full(workloads, eventually)
    dump(tree, tmp_path / "images", hold=True)
    tree.remove()
    other = elsewhere.shell("sleep 1000", name="other")
    run_directory = elsewhere.state_directory / "workloads/again"
    with (
        kept_to_itself(group_of(other).parents[1]),
        pytest.raises(Unsupported, match="workload again can't be restored here: its connections have bytes to send"),
    ):
        restore(tmp_path / "images", name=WorkloadName("again"), run_directory=run_directory)
    assert not run_directory.exists()
    elsewhere.trees.append(restore(tmp_path / "images", name=WorkloadName("again"), run_directory=run_directory).tree)
    finish(elsewhere.trees[-1])


def test_one_that_fills_its_connections_after_it_was_looked_at_is_left_as_it_was(
    workloads: Workloads, eventually: Eventually, tmp_path: Path
) -> None:
    """Nobody can look at a running program and be right for long."""
    from kybernate.process.dumping import _refuse_unsent

    tree = full(workloads, eventually)
    with kept_to_itself(group_of(tree).parents[1]), pytest.raises(Busy, match=r"it is as before: process 100[01] "):
        _refuse_unsent(tree, 10.0)
    assert tree.frozen
    tree.thaw()
    finish(tree)
