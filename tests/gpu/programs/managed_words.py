"""The refused program of the runner's own test: managed memory by ctypes, so that it runs on the simulated driver, too."""

import ctypes
import time

from program import Loop, cannot_run, mismatch

SIZE = 8 << 20
cuda = ctypes.CDLL("libcuda.so.1")
cuda.cuMemAllocManaged.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint]
cuda.cuMemAlloc_v2.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
cuda.cuMemsetD32_v2.argtypes = [ctypes.c_uint64, ctypes.c_uint, ctypes.c_size_t]
cuda.cuMemcpyDtoH_v2.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_size_t]
cuda.cuDevicePrimaryCtxRetain.argtypes = [ctypes.c_void_p, ctypes.c_int]
cuda.cuCtxSetCurrent.argtypes = [ctypes.c_void_p]
loop = Loop()
device, context = ctypes.c_int(), ctypes.c_void_p()
ordinary, managed = ctypes.c_uint64(), ctypes.c_uint64()
if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0):
    cannot_run("no CUDA device")
if cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) or cuda.cuCtxSetCurrent(context):
    cannot_run("no context")
if cuda.cuMemAlloc_v2(ctypes.byref(ordinary), SIZE) or cuda.cuMemAllocManaged(ctypes.byref(managed), SIZE, 1):
    cannot_run("no managed memory")
found = ctypes.create_string_buffer(SIZE)
for step in loop:
    for place in (ordinary, managed):
        failures = cuda.cuMemsetD32_v2(place.value, step + 1, SIZE // 4)
        failures += cuda.cuMemcpyDtoH_v2(found, place.value, SIZE)
        if failures or found.raw != (step + 1).to_bytes(4, "little") * (SIZE // 4):
            mismatch(f"step {step}")
    time.sleep(0.01)
loop.finish()
