"""A process that is large in one way: `large_process.py memory|threads|mappings|descriptors NUMBER`; bytes, or how many.

It prints `ready`, waits for the file `go` in its control directory, and prints `sum` of what it holds then.
"""

import mmap
import os
import sys
import threading
import time
import zlib

BLOCK_BYTES = 16 << 20
STACK_BYTES = 64 << 10


def memory(size: int) -> list[mmap.mmap]:
    """Private, and nothing that shrinks."""
    held = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for start in range(0, size, BLOCK_BYTES):
        held[start : start + BLOCK_BYTES] = os.urandom(min(BLOCK_BYTES, size - start))
    return [held]


def threads(number: int) -> list[mmap.mmap]:
    threading.stack_size(STACK_BYTES)
    end = threading.Event()
    for _ in range(number):
        threading.Thread(target=end.wait, daemon=True).start()
    return []


def mappings(number: int) -> list[mmap.mmap]:
    """Of a page each; every second one can't be written, so that they stay apart."""
    held = []
    for index in range(number):
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if index % 2 else 0)
        held.append(mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=protection))
        if index % 2:
            held[-1][:4] = index.to_bytes(4, "little")
    return held


def descriptors(number: int) -> list[mmap.mmap]:
    for _ in range(number):
        os.open("/dev/null", os.O_RDONLY)
    return []


def main() -> None:
    held = {"memory": memory, "threads": threads, "mappings": mappings, "descriptors": descriptors}[sys.argv[1]](
        int(sys.argv[2])
    )
    print("ready", flush=True)
    go = os.path.join(os.environ["KYBERNATE_RUN_DIRECTORY"], "control", "go")  # noqa: PTH118
    while not os.path.exists(go):  # noqa: PTH110
        time.sleep(0.05)
    found = 0
    for part in held:
        for start in range(0, len(part), BLOCK_BYTES):
            found = zlib.crc32(memoryview(part)[start : start + BLOCK_BYTES], found)
    print(f"sum {found} {threading.active_count()} {len(os.listdir('/proc/self/fd'))}", flush=True)  # noqa: PTH208
    os._exit(0)


main()
