"""Compiles kernels.cu for the GPU at hand and keeps the result.

The compiler is NVRTC, found by cuda-bindings (the CUDA toolkit's, or the nvidia-cuda-nvrtc package's). The compiled image is
cached by source, architecture and driver, so that only the first start pays for it (about 0.3 s). The simulated driver has
the same kernels built in and takes a marker for the image.

Limits: one architecture a cache entry; a damaged entry is compiled anew.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from kybernate.cuda.driver import CudaError, Gpu, call, check
from kybernate.model.errors import Unsupported

SIMULATED_IMAGE = b"KYBERNATE-SIMULATED\0"

_SEAL = 32
"""Bytes of SHA-256 before the image in a cache file."""


def default_cache() -> Path:
    """$XDG_CACHE_HOME/kybernate, else ~/.cache/kybernate."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "kybernate"


def source() -> str:
    return resources.files("kybernate.cuda").joinpath("kernels.cu").read_text()


def image(gpu: Gpu, *, cache: Path | None = None) -> bytes:
    """The compiled kernels for this GPU, from the cache if they are there.

    Raises:
        Unsupported: no NVRTC on this machine, or it can't compile for this GPU; says how to mend.
    """
    if gpu.simulated:
        return SIMULATED_IMAGE
    architecture = "sm_{}{}".format(*gpu.compute_capability)
    text = source()
    name = hashlib.sha256(f"{architecture}\0{gpu.driver_version()}\0{text}".encode()).hexdigest()[:32]
    path = (cache or default_cache()) / f"kernels-{name}.cubin"
    if (kept := _read(path)) is not None:
        return kept
    compiled = compile_source(text, architecture)
    _write(path, compiled)
    return compiled


def compile_source(text: str, architecture: str) -> bytes:
    """A cubin. Needs no GPU.

    Raises:
        Unsupported: no NVRTC here, or it refused; its log is in the message.
    """
    try:
        from cuda.bindings import nvrtc

        program = check(nvrtc.nvrtcCreateProgram(text.encode(), b"kernels.cu", 0, None, None), "nvrtcCreateProgram")
    except (ImportError, RuntimeError) as e:
        raise Unsupported(
            "no NVRTC, the CUDA run-time compiler, on this machine",
            hint="install the CUDA toolkit's libnvrtc or `pip install nvidia-cuda-nvrtc`",
        ) from e
    options = [f"--gpu-architecture={architecture}".encode(), b"--std=c++17"]
    try:
        check(nvrtc.nvrtcCompileProgram(program, len(options), options), "nvrtcCompileProgram")
        cubin = b" " * int(check(nvrtc.nvrtcGetCUBINSize(program), "nvrtcGetCUBINSize"))
        check(nvrtc.nvrtcGetCUBIN(program, cubin), "nvrtcGetCUBIN")
    except CudaError as e:
        raise Unsupported(
            f"NVRTC can't compile the kernels for {architecture}: {_log(nvrtc, program).splitlines()[0][:300]}",
            hint=str(e),
        ) from e
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return cubin


class Kernels:
    """The kernels, loaded into one GPU's context for as long as the process lives."""

    def __init__(self, gpu: Gpu, *, cache: Path | None = None) -> None:
        code = image(gpu, cache=cache)
        self._functions: dict[str, Any] = {}
        with gpu.current():
            self._module = call("cuModuleLoadData", code)

    def launch(self, name: str, *, grid: int, block: int, stream: Any, arguments: tuple[np.generic, ...]) -> None:
        """Launch by name; each argument is a numpy scalar of exactly the parameter's width. The context must be current."""
        function = self._functions.get(name)
        if function is None:
            function = self._functions[name] = call("cuModuleGetFunction", self._module, name.encode())
        cells = [np.array([argument]) for argument in arguments]
        pointers = np.array([cell.ctypes.data for cell in cells], dtype=np.uint64)
        call("cuLaunchKernel", function, grid, 1, 1, block, 1, 1, 0, stream, pointers.ctypes.data, 0)


def _log(nvrtc: Any, program: Any) -> str:
    log = b" " * int(check(nvrtc.nvrtcGetProgramLogSize(program), "nvrtcGetProgramLogSize"))
    check(nvrtc.nvrtcGetProgramLog(program, log), "nvrtcGetProgramLog")
    return log.decode("utf-8", "replace").strip("\0 \n")


def _read(path: Path) -> bytes | None:
    try:
        content = path.read_bytes()
    except OSError:
        return None
    return content[_SEAL:] if hashlib.sha256(content[_SEAL:]).digest() == content[:_SEAL] else None


def _write(path: Path, compiled: bytes) -> None:
    """Whole or not at all; a cache that can't be written only costs time."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(hashlib.sha256(compiled).digest() + compiled)
        Path(file.name).replace(path)
    except OSError:
        return
