"""Two processes whose kernels wait for each other, as those of a communication library do: on the simulated driver.

The first one launches ahead as far as its streams take it, the second falls behind and catches up; each now and then
waits for all it launched. `meeting.py FRACTION` says `step N` after each wait; SIGTERM ends both.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import sys
import time
from ctypes import byref, c_uint, c_uint64, c_void_p

from kybernate.benchmarks.driver import Driver

BATCH = 40
MIB = 1 << 20


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def run(rank: int, words: mmap.mmap, pace_s: float) -> None:
    driver = Driver()
    base = ctypes.addressof(ctypes.c_char.from_buffer(words))
    driver.call("cuMemHostRegister_v2", c_void_p(base), ctypes.c_size_t(len(words)), c_uint(0))
    module, meet, add_one = c_void_p(), c_void_p(), c_void_p()
    driver.call("cuModuleLoadData", byref(module), b"KYBERNATE-SIMULATED\0")
    driver.call("cuModuleGetFunction", byref(meet), module, b"meet")
    driver.call("cuModuleGetFunction", byref(add_one), module, b"add_one_u32")
    stream = c_void_p()
    driver.call("cuStreamCreate", byref(stream), c_uint(1))
    memory = driver.allocate(8 * MIB)
    driver.call("cuMemsetD32_v2", memory, 0, 4)

    def launch(function: c_void_p, *values: int) -> None:
        arguments = [c_uint64(value) for value in values]
        pointers = (c_void_p * len(arguments))(*[ctypes.addressof(argument) for argument in arguments])
        driver.call("cuLaunchKernel", function, 1, 1, 1, 1, 1, 1, 0, stream, pointers, None)

    chance = random.Random(rank)
    step = 0
    while True:
        for _ in range(BATCH):
            launch(meet, base + 64 * rank, base + 64 * (1 - rank))
            launch(add_one, memory, 4)
            if rank:
                time.sleep(chance.random() * pace_s)
        driver.call("cuStreamSynchronize", stream)
        step += 1
        found = ctypes.create_string_buffer(4)
        driver.call("cuMemcpyDtoH_v2", found, memory, 4)
        if int.from_bytes(found.raw, "little") != step * BATCH:
            say(f"MISMATCH rank {rank}, step {step}: {found.raw.hex()}")
            os._exit(1)
        if rank:
            say(f"step {step}")


if __name__ == "__main__":
    shared = mmap.mmap(-1, 4096)
    child = os.fork()
    run(0 if child else 1, shared, float(sys.argv[1]))
