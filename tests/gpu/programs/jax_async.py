"""JAX with the cuda_async allocator: memory from the driver's own stream-ordered pool, which stays native."""

from jax_common import memory, run
from program import Loop

memory(fraction="0.1", allocator="cuda_async", preallocate=False)
loop = Loop()
run(loop, mib=512)
loop.finish()
