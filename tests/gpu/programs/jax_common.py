"""The load of the JAX programs: jitted steps on uint32 arrays, compared with the closed formula."""

from __future__ import annotations

import os

from program import INCREMENT, MULTIPLIER, Loop, Sequence, cannot_run, mismatch


def memory(*, fraction: str | None, allocator: str | None = None, preallocate: bool = True) -> None:
    """Choose JAX's allocator; before JAX is imported. Both spellings of the fraction at once are an error in JAX."""
    os.environ.pop("XLA_PYTHON_CLIENT_MEM_FRACTION", None)
    if fraction is not None:
        os.environ["XLA_CLIENT_MEM_FRACTION"] = fraction
    if allocator is not None:
        os.environ["XLA_PYTHON_CLIENT_ALLOCATOR"] = allocator
    if not preallocate:
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"


def run(loop: Loop, *, mib: int) -> None:
    import jax
    import jax.numpy as jnp

    wanted = os.environ.get("KYB_PROGRAM_DEVICE", "gpu").replace("cuda", "gpu")
    try:
        device = jax.devices(wanted)[0]
    except RuntimeError as error:
        cannot_run(f"JAX sees no {wanted} device: {str(error).splitlines()[0]}")
    count = 4
    words = max(1024, int(os.environ.get("KYB_PROGRAM_MIB", mib)) * (1 << 20) // 4 // count)
    with jax.default_device(device):

        @jax.jit
        def formula(slope, intercept):  # type: ignore[no-untyped-def]
            return jnp.arange(words, dtype=jnp.uint32) * slope + intercept

        @jax.jit
        def advance(x):  # type: ignore[no-untyped-def]
            return x * jnp.uint32(MULTIPLIER) + jnp.uint32(INCREMENT)

        @jax.jit
        def compare(x, slope, intercept):  # type: ignore[no-untyped-def]
            return jnp.sum(x, dtype=jnp.uint32), jnp.sum((x != formula(slope, intercept)).astype(jnp.uint32))

        @jax.jit
        def product(a, b):  # type: ignore[no-untyped-def]
            return jnp.matmul(a, b, precision="highest")

        def word(value: int):  # type: ignore[no-untyped-def]
            return jnp.asarray(value, dtype=jnp.uint32)

        def check(which: int, where: str) -> None:
            sequence = sequences[which]
            total, wrong = compare(arrays[which], word(sequence.slope), word(sequence.intercept))
            if int(total) != sequence.total(words):
                mismatch(f"{where}: sum of array {which} is {int(total):#x}, expected {sequence.total(words):#x}")
            if int(wrong):
                mismatch(f"{where}: {int(wrong)} words of array {which} differ")

        sequences = [Sequence.begin(seed) for seed in range(count)]
        arrays = [formula(word(s.slope), word(s.intercept)) for s in sequences]
        # Whole numbers far below 2**24 are exact in float32 in whatever order they are added.
        left = (jnp.arange(512 * 512, dtype=jnp.uint32) * word(2654435761) >> 29).astype(jnp.float32).reshape(512, 512)
        first = jax.device_get(product(left, left.T))
        for step in loop:
            which = step % count
            arrays[which] = advance(arrays[which])
            sequences[which].advance()
            check(which, f"step {step}")
            check((which + 1) % count, f"step {step}, untouched array")
            if not (jax.device_get(product(left, left.T)) == first).all():
                mismatch(f"step {step}: matrix product differs")
        for which in range(count):
            check(which, "at the end")
