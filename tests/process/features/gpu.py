"""A process with CUDA state on a simulated GPU; left out where the test gives it none."""

import ctypes
import os
import sys

from station import dumped

if "KYBERNATE_SIMULATED_GPU" not in os.environ:
    dumped()
    sys.exit()
cuda = ctypes.CDLL("libcuda.so.1")
context, address = ctypes.c_void_p(), ctypes.c_uint64()
BYTES = 8 << 20


def ok(result: int) -> None:
    assert result == 0, result


ok(cuda.cuInit(0))
ok(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0))
ok(cuda.cuCtxSetCurrent(context))
ok(cuda.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(BYTES)))
content = os.urandom(1 << 20) * 8
ok(cuda.cuMemcpyHtoD_v2(address, content, ctypes.c_size_t(BYTES)))
dumped()
found = ctypes.create_string_buffer(BYTES)
ok(cuda.cuMemcpyDtoH_v2(found, address, ctypes.c_size_t(BYTES)))
assert found.raw == content
more = ctypes.c_uint64()
ok(cuda.cuMemAlloc_v2(ctypes.byref(more), ctypes.c_size_t(BYTES)))
