"""A workload with a helper process that is sent descriptors of its GPU memory and keeps them. `keeper.py MIB`."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

from kybernate.benchmarks.driver import Driver

MIB = 1 << 20


def helper(channel: socket.socket) -> None:
    # Not a forked child's: those let go of what they inherited. These come later.
    _, fds, _, _ = socket.recv_fds(channel, 1, 16)
    sys.stdout.write(f"keeps {len(fds)}, process {os.getpid()}\n")
    sys.stdout.flush()
    while True:
        time.sleep(1)


def main(size_mib: int) -> None:
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        helper(theirs)
    driver = Driver()
    address = driver.allocate(size_mib * MIB)
    driver.call("cuMemsetD32_v2", address, 7, size_mib * MIB // 4)
    gpu = Path(os.environ["KYBERNATE_SIMULATED_GPU"]).stat().st_dev
    found = []
    for link in Path("/proc/self/fd").iterdir():
        if link.exists() and link.stat().st_dev == gpu and link.stat().st_size == size_mib * MIB:
            found.append(int(link.name))
    socket.send_fds(ours, [b"k"], found)
    while True:
        driver.call("cuMemsetD32_v2", address, 7, 4)
        time.sleep(0.05)


if __name__ == "__main__":
    main(int(sys.argv[1]))
