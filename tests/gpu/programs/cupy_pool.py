"""CuPy with its memory pool (cuMemAlloc) and a kernel compiled at run time."""

import os
import random
import tempfile

# The workload's user may have no home directory to write to.
os.environ["CUPY_CACHE_DIR"] = tempfile.mkdtemp(prefix="kyb-cupy-")

import cupy
from program import INCREMENT, MULTIPLIER, Loop, Sequence, cannot_run, mismatch

COUNT = 4
loop = Loop()
try:
    cupy.cuda.Device(0).use()
except cupy.cuda.runtime.CUDARuntimeError as error:
    cannot_run(f"CuPy sees no CUDA device: {error}")
words = int(os.environ.get("KYB_PROGRAM_MIB", "1024")) * (1 << 20) // 4 // COUNT
advance = cupy.RawKernel(
    r"""
    extern "C" __global__ void advance(unsigned int *words, unsigned long long count)
    {
        for (unsigned long long i = blockIdx.x * (unsigned long long)blockDim.x + threadIdx.x; i < count;
             i += (unsigned long long)gridDim.x * blockDim.x)
            words[i] = words[i] * MULTIPLIER + INCREMENT;
    }
    """.replace("MULTIPLIER", f"{MULTIPLIER}u").replace("INCREMENT", f"{INCREMENT}u"),
    "advance",
)
index = cupy.arange(words, dtype=cupy.uint32)


def formula(sequence: Sequence) -> cupy.ndarray:
    return index * cupy.uint32(sequence.slope) + cupy.uint32(sequence.intercept)


def check(which: int, where: str) -> None:
    total = int(arrays[which].sum(dtype=cupy.uint64)) & 0xFFFFFFFF
    if total != sequences[which].total(words):
        mismatch(f"{where}: sum of array {which} is {total:#x}, expected {sequences[which].total(words):#x}")
    if not bool((arrays[which] == formula(sequences[which])).all()):
        mismatch(f"{where}: array {which} has the right sum but wrong words")


sequences = [Sequence.begin(seed) for seed in range(COUNT)]
arrays = [formula(sequence) for sequence in sequences]
sizes = random.Random(5)
kept: list[tuple[cupy.ndarray, int]] = []
for step in loop:
    which = step % COUNT
    advance((1024,), (256,), (arrays[which], cupy.uint64(words)))
    sequences[which].advance()
    check(which, f"step {step}")
    check((which + 1) % COUNT, f"step {step}, untouched array")
    kept.append((cupy.full(sizes.randrange(1, 24) << 18, step, dtype=cupy.uint32), step))
    if len(kept) > 6:
        temporary, value = kept.pop(sizes.randrange(len(kept)))
        if not bool((temporary == value).all()):
            mismatch(f"step {step}: temporary of step {value} differs")
        del temporary
    if step % 200 == 199:
        cupy.get_default_memory_pool().free_all_blocks()
for which in range(COUNT):
    check(which, "at the end")
loop.finish()
