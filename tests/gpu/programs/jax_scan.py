"""JAX's lax.scan with CPU work and copies from and to the host between: XLA's copies ask the driver about their pointers first."""

import os
import time

from jax_common import memory
from program import INCREMENT, MULTIPLIER, Loop, Sequence, cannot_run, mismatch

memory(fraction="0.1")

import jax  # noqa: E402 - the allocator is chosen before JAX is imported
import jax.numpy as jnp  # noqa: E402
import numpy  # noqa: E402

CPU_WORK_S = 0.002
COUNT = 4
LENGTH = 16
"""Steps of a scan. The loop's condition is looked at on the host, or its body becomes a graph: as XLA likes."""

loop = Loop()
wanted = os.environ.get("KYB_PROGRAM_DEVICE", "gpu").replace("cuda", "gpu")
try:
    device = jax.devices(wanted)[0]
except RuntimeError as error:
    cannot_run(f"JAX sees no {wanted} device: {str(error).splitlines()[0]}")
words = max(1024, int(os.environ.get("KYB_PROGRAM_MIB", "512")) * (1 << 20) // 4 // COUNT)


@jax.jit
def formula(slope, intercept):  # type: ignore[no-untyped-def]
    return jnp.arange(words, dtype=jnp.uint32) * slope + intercept


@jax.jit
def scanned(array, added):  # type: ignore[no-untyped-def]
    """Step by step with what is added in each; also the first word after each step."""

    def body(carry, add):  # type: ignore[no-untyped-def]
        stepped = carry * jnp.uint32(MULTIPLIER) + add
        return stepped, stepped[0]

    return jax.lax.scan(body, array, added)


@jax.jit
def wrong(array, slope, intercept):  # type: ignore[no-untyped-def]
    return jnp.sum((array != formula(slope, intercept)).astype(jnp.uint32))


def word(value: int):  # type: ignore[no-untyped-def]
    return jax.device_put(numpy.uint32(value), device)


def check(which: int, where: str) -> None:
    sequence = sequences[which]
    if bad := int(wrong(arrays[which], word(sequence.slope), word(sequence.intercept))):
        mismatch(f"{where}: {bad} words of array {which} differ")


sequences = [Sequence.begin(seed) for seed in range(COUNT)]
with jax.default_device(device):
    arrays = [formula(word(s.slope), word(s.intercept)) for s in sequences]
    for step in loop:
        which = step % COUNT
        added = jax.device_put(numpy.full(LENGTH, INCREMENT, dtype=numpy.uint32), device)
        time.sleep(CPU_WORK_S)
        arrays[which], firsts = scanned(arrays[which], added)
        expected = []
        for _ in range(LENGTH):
            sequences[which].advance()
            expected.append(sequences[which].word(0))
        if jax.device_get(firsts).tolist() != expected:
            mismatch(f"step {step}: the scan's outputs differ")
        time.sleep(CPU_WORK_S)
        check(which, f"step {step}")
        if step % 16 == 15:  # a whole array to the host and back
            copied = numpy.array(jax.device_get(arrays[(which + 1) % COUNT]))
            time.sleep(CPU_WORK_S)
            arrays[(which + 1) % COUNT] = jax.device_put(copied, device)
            check((which + 1) % COUNT, f"step {step}, after a copy to the host and back")
    for which in range(COUNT):
        check(which, "at the end")
loop.finish()
