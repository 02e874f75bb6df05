"""Triton launched from CPU work: its launcher asks the driver about each pointer before the kernel, in whatever moment of a pause.

Two threads work on the CPU for 2 ms between launches, so most pauses find them there and not in a call. Each has arrays of its own.
"""

import os
import tempfile
import threading
import time
from pathlib import Path

# The workload's user may have no home directory to write to.
cache = Path(tempfile.mkdtemp(prefix="kyb-triton-"))
os.environ["TRITON_CACHE_DIR"] = str(cache)

import torch  # noqa: E402 - the cache is named before Triton is imported
from program import INCREMENT, MULTIPLIER, Loop, cannot_run, mismatch, signed  # noqa: E402
from torch_common import DEVICE, MIB, Arrays, require_cuda, working_set_mib  # noqa: E402

try:
    import triton
    import triton.language as tl
except ImportError as error:
    cannot_run(f"no Triton: {error}")

CPU_WORK_S = 0.002
THREADS, EACH = 2, 2
BLOCK = 1024
CHECK_EVERY = 8


@triton.jit
def advance(array, words, multiplier, increment, block: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0) * block + tl.arange(0, block)
    inside = at < words
    value = tl.load(array + at, mask=inside)
    tl.store(array + at, value * multiplier + increment, mask=inside)


@triton.jit
def combine(left, right, out, words, block: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0) * block + tl.arange(0, block)
    inside = at < words
    tl.store(out + at, tl.load(left + at, mask=inside) ^ tl.load(right + at, mask=inside), mask=inside)


def cpu_work() -> None:
    """Python's own, which makes no call of CUDA."""
    end = time.perf_counter() + CPU_WORK_S
    while time.perf_counter() < end:
        sum(range(200))


class Worker:
    """Arrays, and the launches that step them."""

    def __init__(self, seed: int, words: int) -> None:
        self.arrays = Arrays(count=EACH, words=words, seed=seed)
        self.out = torch.empty(words, dtype=torch.int32, device=DEVICE)
        self.steps = 0
        self._grid = ((words + BLOCK - 1) // BLOCK,)

    def step(self) -> None:
        arrays, which = self.arrays, self.steps % EACH
        cpu_work()
        advance[self._grid](arrays.tensors[which], arrays.words, MULTIPLIER, signed(INCREMENT), block=BLOCK)
        arrays.sequences[which].advance()
        cpu_work()
        combine[self._grid](arrays.tensors[0], arrays.tensors[1], self.out, arrays.words, block=BLOCK)
        self.steps += 1
        if self.steps % CHECK_EVERY == 0:
            self.check(f"step {self.steps}")

    def check(self, where: str) -> None:
        for which in range(EACH):
            self.arrays.check(which, where)
        if not torch.equal(self.out, self.arrays.tensors[0] ^ self.arrays.tensors[1]):
            mismatch(f"{where}: the combined array differs")


loop = Loop()
require_cuda()
# Two arrays and their combination, for each thread.
count = max(1024, working_set_mib(512) * MIB // 4 // THREADS // (EACH + 1))
workers = [Worker(seed=number * EACH, words=count) for number in range(THREADS)]
for worker in workers:
    worker.step()  # compiled before the others begin
    torch.cuda.synchronize()


def going() -> bool:
    return not loop.stopped


def work(worker: Worker) -> None:
    if DEVICE == "cuda":
        torch.cuda.set_device(0)  # a thread begins without a context
    while going():
        worker.step()


others = [threading.Thread(target=work, args=(worker,)) for worker in workers[1:]]
for thread in others:
    thread.start()
for _ in loop:
    workers[0].step()
for thread in others:
    thread.join()
for worker in workers:
    worker.check("at the end")
loop.finish(note=f"triton={triton.__version__} launches={sum(2 * worker.steps for worker in workers)}")
