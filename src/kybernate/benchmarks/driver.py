"""The few CUDA driver calls of the benchmark's workload, by ctypes.

The workload must be as plain as a program can be: no framework, no bindings, nothing of ours but the library that is
preloaded into it. Kernels are compiled at run time by NVRTC; where that isn't possible (no NVRTC, simulated driver)
the workload falls back to memset and copies, and says so.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from pathlib import Path
from typing import Any

KERNELS = rb"""
extern "C" __global__ void fill_words(unsigned int *words, unsigned long long count, unsigned int slope,
                                      unsigned int intercept)
{
    for (unsigned long long i = blockIdx.x * (unsigned long long)blockDim.x + threadIdx.x; i < count;
         i += (unsigned long long)gridDim.x * blockDim.x)
        words[i] = (unsigned int)i * slope + intercept;
}
extern "C" __global__ void compare_words(const unsigned int *words, unsigned long long count, unsigned int slope,
                                         unsigned int intercept, unsigned long long *wrong)
{
    for (unsigned long long i = blockIdx.x * (unsigned long long)blockDim.x + threadIdx.x; i < count;
         i += (unsigned long long)gridDim.x * blockDim.x)
        if (words[i] != (unsigned int)i * slope + intercept)
            atomicAdd(wrong, 1ULL);
}
"""

_ARCHITECTURE_MAJOR, _ARCHITECTURE_MINOR = 75, 76


class DriverError(RuntimeError):
    """A CUDA call failed; the message names it."""


class Driver:
    """libcuda.so.1 and one primary context."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL("libcuda.so.1")
        self._declare()
        self.call("cuInit", 0)
        device = c_int()
        self.call("cuDeviceGet", byref(device), 0)
        self._context = c_void_p()
        self.call("cuDevicePrimaryCtxRetain", byref(self._context), device)
        self.enter_thread()
        self._device = device
        name = ctypes.create_string_buffer(256)
        self.call("cuDeviceGetName", name, 256, device)
        self.name = name.value.decode(errors="replace")

    def _declare(self) -> None:
        table: dict[str, list[Any]] = {
            "cuInit": [c_uint],
            "cuDeviceGet": [c_void_p, c_int],
            "cuDeviceGetName": [c_char_p, c_int, c_int],
            "cuDeviceGetAttribute": [c_void_p, c_int, c_int],
            "cuDevicePrimaryCtxRetain": [c_void_p, c_int],
            "cuCtxSetCurrent": [c_void_p],
            "cuCtxSynchronize": [],
            "cuMemAlloc_v2": [c_void_p, c_size_t],
            "cuMemFree_v2": [c_uint64],
            "cuMemsetD32_v2": [c_uint64, c_uint, c_size_t],
            "cuMemcpyDtoH_v2": [c_void_p, c_uint64, c_size_t],
            "cuMemcpyHtoD_v2": [c_uint64, c_void_p, c_size_t],
            "cuModuleLoadData": [c_void_p, c_char_p],
            "cuModuleGetFunction": [c_void_p, c_void_p, c_char_p],
            "cuLaunchKernel": [c_void_p, *[c_uint] * 7, c_void_p, c_void_p, c_void_p],
            "cuGetErrorName": [c_int, c_void_p],
        }
        for name, arguments in table.items():
            function = getattr(self.library, name)
            function.argtypes, function.restype = arguments, c_int

    def call(self, name: str, *arguments: Any) -> None:
        """Raises DriverError for anything but CUDA_SUCCESS."""
        status = getattr(self.library, name)(*arguments)
        if status:
            text = c_char_p()
            self.library.cuGetErrorName(status, byref(text))
            raise DriverError(f"{name}: {text.value.decode() if text.value else status}")

    def enter_thread(self) -> None:
        """Each further thread that makes calls begins with this one."""
        self.call("cuCtxSetCurrent", self._context)

    def allocate(self, size: int) -> int:
        pointer = c_uint64()
        self.call("cuMemAlloc_v2", byref(pointer), size)
        return pointer.value

    def free(self, pointer: int) -> None:
        self.call("cuMemFree_v2", pointer)

    def architecture(self) -> str:
        values = []
        for attribute in (_ARCHITECTURE_MAJOR, _ARCHITECTURE_MINOR):
            value = c_int()
            self.call("cuDeviceGetAttribute", byref(value), attribute, self._device)
            values.append(str(value.value))
        return "sm_" + "".join(values)


class Kernels:
    """The two kernels, compiled for this GPU.

    Raises:
        DriverError, OSError: NVRTC isn't there or the driver runs no kernels.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        module = c_void_p()
        self._image = compile_kernels(driver.architecture())
        driver.call("cuModuleLoadData", byref(module), self._image)
        self._functions = {}
        for name in (b"fill_words", b"compare_words"):
            function = c_void_p()
            driver.call("cuModuleGetFunction", byref(function), module, name)
            self._functions[name] = function
        self._wrong = driver.allocate(8)
        self._prove()

    def _launch(self, name: bytes, arguments: Sequence[Any]) -> None:
        pointers = (c_void_p * len(arguments))(*[ctypes.cast(byref(argument), c_void_p) for argument in arguments])
        self._driver.call("cuLaunchKernel", self._functions[name], 1024, 1, 1, 256, 1, 1, 0, None, pointers, None)

    def fill(self, pointer: int, count: int, slope: int, intercept: int) -> None:
        self._launch(b"fill_words", (c_uint64(pointer), c_uint64(count), c_uint(slope), c_uint(intercept)))

    def wrong(self, places: Sequence[tuple[int, int, int, int]]) -> int:
        """Number of words that differ, over all places (pointer, count, slope, intercept)."""
        self._driver.call("cuMemsetD32_v2", self._wrong, 0, 2)
        for pointer, count, slope, intercept in places:
            self._launch(
                b"compare_words",
                (c_uint64(pointer), c_uint64(count), c_uint(slope), c_uint(intercept), c_uint64(self._wrong)),
            )
        found = c_uint64()
        self._driver.call("cuMemcpyDtoH_v2", byref(found), self._wrong, 8)
        return found.value

    def _prove(self) -> None:
        """A driver that accepts launches and runs nothing must not pass for one that works."""
        count = 1024
        place = self._driver.allocate(count * 4)
        self.fill(place, count, 3, 7)
        words = (c_uint * count)()
        self._driver.call("cuMemcpyDtoH_v2", words, place, count * 4)
        right = list(words) == [i * 3 + 7 for i in range(count)]
        counted = self.wrong([(place, count, 3, 7)]) == 0 and self.wrong([(place, count, 3, 8)]) == count
        self._driver.free(place)
        if not (right and counted):
            raise DriverError("kernels are accepted but not run by this driver")


def compile_kernels(architecture: str) -> bytes:
    """The kernels as a cubin.

    Raises:
        OSError: there is no NVRTC.
        DriverError: it doesn't compile them.
    """
    nvrtc = _nvrtc()
    program = c_void_p()
    nvrtc.nvrtcCreateProgram.argtypes = [c_void_p, c_char_p, c_char_p, c_int, c_void_p, c_void_p]
    nvrtc.nvrtcCompileProgram.argtypes = [c_void_p, c_int, c_void_p]
    nvrtc.nvrtcGetCUBINSize.argtypes = [c_void_p, c_void_p]
    nvrtc.nvrtcGetCUBIN.argtypes = [c_void_p, c_void_p]
    if nvrtc.nvrtcCreateProgram(byref(program), KERNELS, b"workload.cu", 0, None, None):
        raise DriverError("nvrtcCreateProgram failed")
    options = (c_char_p * 1)(f"--gpu-architecture={architecture}".encode())
    if status := nvrtc.nvrtcCompileProgram(program, 1, options):
        raise DriverError(f"nvrtcCompileProgram for {architecture}: error {status}")
    size = c_size_t()
    if nvrtc.nvrtcGetCUBINSize(program, byref(size)):
        raise DriverError("nvrtcGetCUBINSize failed")
    image = ctypes.create_string_buffer(size.value)
    if nvrtc.nvrtcGetCUBIN(program, image):
        raise DriverError("nvrtcGetCUBIN failed")
    return image.raw


def _nvrtc() -> ctypes.CDLL:
    candidates = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]
    for root in [*filter(None, sys.path), "/usr/local/cuda"]:
        for pattern in (
            "nvidia/*/lib/libnvrtc.so.1[0-9]",
            "lib64/libnvrtc.so.1[0-9]",
            "targets/*/lib/libnvrtc.so.1[0-9]",
        ):
            candidates += sorted((str(path) for path in Path(root).glob(pattern)), reverse=True)
    for candidate in candidates:
        try:
            return ctypes.CDLL(candidate)
        except OSError:
            continue
    raise OSError("no libnvrtc found")
