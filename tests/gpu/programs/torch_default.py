"""torch with its default caching allocator (a few large cuMemAlloc)."""

from program import Loop
from torch_common import run

loop = Loop()
run(loop, mib=1024)
loop.finish()
