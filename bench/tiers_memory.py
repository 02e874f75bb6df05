"""Have the host give this machine its memory before anything is timed.

Some virtual machines get their memory only when it is used for the first time, at some 3 GiB/s, and then keep it. Those who use it
here may be ended first, should there be less than asked for.
"""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

from tiers_plan import total_ram

from kybernate.benchmarks.agent import available_ram
from kybernate.model.types import GIB, MIB

WORKERS = 8
PIECE_BYTES = 256 * MIB
KEPT_BYTES = 6 * GIB
"""Where no more than this is available one waits: the machine may be about to grow."""
LIMIT_S = 40.0
POLL_S = 0.1


def touch(size: int) -> str:
    """Use `size` bytes and give them back. Returns what to say of it."""
    began = time.monotonic()
    before = total_ram()
    read, write = os.pipe()
    children = [_worker(size // WORKERS, began + LIMIT_S, write) for _ in range(WORKERS)]
    os.close(write)
    with open(read, "rb") as answers:  # noqa: PTH123 - a descriptor
        touched = len(answers.read()) * PIECE_BYTES
    for child in children:
        os.waitpid(child, 0)
    return (
        f"RAM: {touched / GIB:.0f} GiB used once before anything was timed, {time.monotonic() - began:.1f} s; "
        f"the machine had {before / GIB:.0f} GiB, then {total_ram() / GIB:.0f}"
    )


def _worker(size: int, deadline: float, answers: int) -> int:
    """Holds what it has until all have theirs; a byte for each piece."""
    pid = os.fork()
    if pid:
        return pid
    held = []
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
        while len(held) * PIECE_BYTES < size and time.monotonic() < deadline:
            if available_ram() < KEPT_BYTES:
                time.sleep(POLL_S)
                continue
            held.append(mmap.mmap(-1, PIECE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE))
            os.write(answers, b".")
    finally:
        os._exit(0)
