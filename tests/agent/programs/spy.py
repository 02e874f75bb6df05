"""A workload of root's that looks for ways out: prints `nothing` or `REACHED`, and what it was, a line each; `end` at the end.

spy.py STATE_DIRECTORY OTHER,OTHER PORT,PORT
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
from pathlib import Path

NEW_MOUNTS = 0x00020000
libc = ctypes.CDLL(None, use_errno=True)


def tell(what: str, reached: object) -> None:
    print("REACHED" if reached else "nothing", what, reached or "")


def opens(path: str) -> bool:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            file.read(1)
    except OSError:
        return False
    return True


def enters(path: str) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    return bool(libc.setns(descriptor, 0) == 0)


def connects(family: socket.AddressFamily, address: str | tuple[str, int]) -> bool:
    kinds = [socket.SOCK_STREAM]
    if family == socket.AF_UNIX:
        kinds += [socket.SOCK_SEQPACKET, socket.SOCK_DGRAM]
    for kind in kinds:
        with socket.socket(family, kind) as knocking:
            knocking.settimeout(60)
            try:
                knocking.connect(address)
            except OSError:
                continue
            return True
    return False


def variables_of(pid: int) -> set[str]:
    """Root may ask its supervisor, which must have nothing to tell."""
    with open(f"/proc/{pid}/environ") as file:  # noqa: PTH123
        return {entry.partition("=")[0] for entry in file.read().split("\0") if entry}


def main() -> None:
    state, others, ports = sys.argv[1], sys.argv[2].split(","), [int(port) for port in sys.argv[3].split(",")]
    me = os.environ["KYBERNATE_WORKLOAD"]
    tell("unmount", libc.umount2(state.encode(), 2) == 0)
    tell("mount", libc.mount(b"x", b"/mnt", b"tmpfs", 0, None) == 0)
    tell("unshare", libc.unshare(NEW_MOUNTS) == 0)
    for kind in ("mnt", "net", "pid", "ipc"):
        tell(f"{kind} of the supervisor", enters(f"/proc/1/ns/{kind}"))
    tell("in the state directory", set(os.listdir(state)) - {"workloads"})  # noqa: PTH208
    tell("in the one of workloads", set(os.listdir(f"{state}/workloads")) - {me})  # noqa: PTH208
    for name in ("api.token", "agent.db", "activator.json", "activator.log", "agent.sock", "activator.sock"):
        tell(name, Path(f"{state}/{name}").exists() or opens(f"/proc/1/root{state}/{name}"))
    tell("processes", {int(name) for name in os.listdir("/proc") if name.isdigit()} - {1, os.getpid()})  # noqa: PTH208
    tell("the agent's variables", variables_of(1) - {"PATH", "LC_ALL"})
    for other in others:
        tell(f"{other}'s socket", connects(socket.AF_UNIX, f"{state}/workloads/{other}/agent.sock"))
    for port in ports:
        tell(f"port {port}", connects(socket.AF_INET, ("127.0.0.1", port)) or connects(socket.AF_INET6, ("::1", port)))
    with open("/proc/net/unix") as file:  # noqa: PTH123
        tell("abstract names", {line.split()[-1] for line in file if "@" in line})
    print("end")


main()
