"""numba.cuda: kernels compiled by numba, memory from cuMemAlloc without a pool."""

import os
import tempfile

cache = tempfile.TemporaryDirectory(prefix="kyb-numba-")  # goes when the program ends
os.environ.setdefault("NUMBA_CACHE_DIR", cache.name)
os.environ.setdefault("NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS", "0")

import numpy  # noqa: E402 - after what numba reads when it is imported
from program import INCREMENT, MULTIPLIER, Loop, Sequence, cannot_run, mismatch  # noqa: E402

# numba looks up names that newer versions of NumPy no longer have; nothing here uses them.
for gone, instead in (("row_stack", "vstack"), ("in1d", "isin"), ("trapz", "trapezoid")):
    if not hasattr(numpy, gone):
        setattr(numpy, gone, getattr(numpy, instead))

from numba import cuda  # noqa: E402 - after what it needs

COUNT = 4
BLOCKS, THREADS = (1024, 256) if not os.environ.get("NUMBA_ENABLE_CUDASIM") else (2, 4)
MASK = 0xFFFFFFFF
loop = Loop()
if not cuda.is_available():
    cache.cleanup()  # that end is an abrupt one
    cannot_run("numba sees no CUDA device")
words = int(float(os.environ.get("KYB_PROGRAM_MIB", "512")) * (1 << 20)) // 4 // COUNT


@cuda.jit
def fill(array, slope, intercept):  # type: ignore[no-untyped-def]
    # int64 arithmetic; the products of two 32-bit numbers are masked before they are added.
    for i in range(cuda.grid(1), array.size, cuda.gridsize(1)):
        array[i] = ((i * slope) & MASK) + intercept & MASK


@cuda.jit
def advance(array):  # type: ignore[no-untyped-def]
    for i in range(cuda.grid(1), array.size, cuda.gridsize(1)):
        array[i] = (numpy.int64(array[i]) * MULTIPLIER + INCREMENT) & MASK


@cuda.jit
def compare(array, slope, intercept, wrong):  # type: ignore[no-untyped-def]
    for i in range(cuda.grid(1), array.size, cuda.gridsize(1)):
        if numpy.int64(array[i]) != (((i * slope) & MASK) + intercept & MASK):
            cuda.atomic.add(wrong, 0, 1)


def check(which: int, where: str) -> None:
    wrong = cuda.to_device(numpy.zeros(1, dtype=numpy.int32))
    sequence = sequences[which]
    compare[BLOCKS, THREADS](arrays[which], numpy.int64(sequence.slope), numpy.int64(sequence.intercept), wrong)
    count = int(wrong.copy_to_host()[0])
    if count:
        mismatch(f"{where}: {count} words of array {which} differ")


sequences = [Sequence.begin(seed) for seed in range(COUNT)]
arrays = [cuda.device_array(words, dtype=numpy.uint32) for _ in range(COUNT)]
for array, sequence in zip(arrays, sequences, strict=True):
    fill[BLOCKS, THREADS](array, numpy.int64(sequence.slope), numpy.int64(sequence.intercept))
for step in loop:
    which = step % COUNT
    advance[BLOCKS, THREADS](arrays[which])
    sequences[which].advance()
    check(which, f"step {step}")
    check((which + 1) % COUNT, f"step {step}, untouched array")
    # A few words read back, as numba programs do, against the CPU's own arithmetic.
    head = arrays[which][:4].copy_to_host().tolist()
    if head != [sequences[which].word(i) for i in range(4)]:
        mismatch(f"step {step}: first words of array {which} are {head}")
for which in range(COUNT):
    check(which, "at the end")
loop.finish()
