"""JAX with its default pool, limited to a tenth of the GPU: one cuMemCreate."""

from jax_common import memory, run
from program import Loop

memory(fraction="0.1")
loop = Loop()
run(loop, mib=1024)
loop.finish()
