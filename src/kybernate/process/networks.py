"""Sockets inside a workload's network namespace, for whoever talks to its ports from outside (the activator).

A socket belongs for life to the namespace it was made in, so only its making has to happen there.
"""

from __future__ import annotations

import os
import socket
import threading

from kybernate.model.errors import WorkloadLost
from kybernate.process import namespaces
from kybernate.process.tree import Tree


def open_socket(
    tree: Tree,
    *,
    family: socket.AddressFamily = socket.AF_INET,
    kind: socket.SocketKind = socket.SOCK_STREAM,
    protocol: int = 0,
) -> socket.socket:
    """A new, unconnected socket that sees the network as the workload does. Takes about 0.1 ms; never waits for it.

    Raises:
        WorkloadLost: the workload has ended.
    """
    if not tree.isolated:  # it sees our own network
        if not tree.alive:
            raise WorkloadLost(f"workload {tree.name} has ended")
        return socket.socket(family, kind, protocol)
    try:
        descriptor = os.open(f"/proc/{tree.supervisor_pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as e:
        raise WorkloadLost(f"workload {tree.name} has ended") from e
    try:
        if not tree.alive:  # after opening: so the pid wasn't another process's
            raise WorkloadLost(f"workload {tree.name} has ended")
        made: list[socket.socket | OSError] = []

        def make() -> None:
            try:
                namespaces.setns(descriptor, namespaces.NEW_NETWORK)
                made.append(socket.socket(family, kind, protocol))
            except OSError as e:
                made.append(e)

        # A thread of its own that ends here: its namespace must not stick to a thread that is used again.
        thread = threading.Thread(target=make, name="kybernate-setns")
        thread.start()
        thread.join()
    finally:
        os.close(descriptor)
    result = made[0]
    if isinstance(result, OSError):
        raise result
    return result
