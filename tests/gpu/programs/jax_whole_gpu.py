"""JAX as it comes: a pool of three quarters of the GPU, nearly all of it zeros."""

from jax_common import memory, run
from program import Loop

memory(fraction=None)
loop = Loop()
run(loop, mib=1024)
loop.finish()
