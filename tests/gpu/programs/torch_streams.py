"""Four threads with two streams each, launching all the time; a step is counted when every thread made one."""

import contextlib
import threading
import time

import torch
from program import Loop
from torch_common import DEVICE, MIB, Arrays, require_cuda, working_set_mib

THREADS = 4
loop = Loop()
require_cuda()
counts = [0] * THREADS


def work(index: int) -> None:
    words = max(1024, working_set_mib(1024) * MIB // 4 // THREADS // 2)
    streams = [torch.cuda.Stream() for _ in range(2)] if DEVICE == "cuda" else [None, None]
    sets: list[Arrays] = []
    for k, stream in enumerate(streams):
        with torch.cuda.stream(stream) if stream is not None else contextlib.nullcontext():
            sets.append(Arrays(count=1, words=words, seed=10 * index + k))
    while not loop.stopped:
        for stream, arrays in zip(streams, sets, strict=True):
            with torch.cuda.stream(stream) if stream is not None else contextlib.nullcontext():
                for _ in range(4):
                    arrays.advance(0)
        for k, (stream, arrays) in enumerate(zip(streams, sets, strict=True)):
            with torch.cuda.stream(stream) if stream is not None else contextlib.nullcontext():
                arrays.check(0, f"thread {index}, stream {k}, step {counts[index]}")
        counts[index] += 1


threads = [threading.Thread(target=work, args=(index,), name=f"worker-{index}") for index in range(THREADS)]
for thread in threads:
    thread.start()
while not loop.stopped:
    time.sleep(0.005)
    if not all(thread.is_alive() for thread in threads) and not loop.stopped:
        raise SystemExit("a worker thread ended by an exception")
    loop.steps = min(counts)
    loop.report()
for thread in threads:
    thread.join()
loop.steps = min(counts)
loop.finish()
