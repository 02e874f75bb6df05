"""Reaching a workload's port from outside of its network namespace."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest
from tests.conftest import Eventually
from tests.process.conftest import Workloads

from kybernate.model.errors import WorkloadLost
from kybernate.process.networks import open_socket
from kybernate.process.specs import Network
from kybernate.process.tree import Tree

pytestmark = pytest.mark.root

SERVER = """
import socket, sys
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("port", server.getsockname()[1], flush=True)
connection, _ = server.accept()
connection.sendall(b"from inside")
"""


@pytest.mark.parametrize("network", list(Network))
def test_a_port_inside(
    workloads: Workloads, eventually: Eventually, output: Callable[[Tree], str], network: Network
) -> None:
    tree = workloads.python(SERVER, "0", network=network)
    eventually(lambda: "port" in output(tree) and output(tree).endswith("\n"))
    port = int(output(tree).split()[1])
    with open_socket(tree) as client:
        client.settimeout(60)
        client.connect(("127.0.0.1", port))
        assert client.recv(100) == b"from inside"


def test_two_workloads_on_one_port(workloads: Workloads, eventually: Eventually, output: Callable[[Tree], str]) -> None:
    trees = [workloads.python(SERVER, "8000", name=name) for name in ("one", "two")]
    for tree in trees:
        eventually(lambda tree=tree: "port" in output(tree))
        with open_socket(tree) as client:
            client.connect(("127.0.0.1", 8000))
            assert client.recv(100) == b"from inside"
    with socket.socket() as here, pytest.raises(ConnectionRefusedError):
        here.connect(("127.0.0.1", 8000))


def test_a_workload_that_has_ended(workloads: Workloads) -> None:
    tree = workloads.launch("true")
    tree.wait(60)
    with pytest.raises(WorkloadLost, match="has ended"):
        open_socket(tree)
