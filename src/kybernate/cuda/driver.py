"""The one way to the CUDA driver: calls with their errors turned into ours, and the GPUs of this machine.

Every CUDA call of the house goes through `call`, which names the call in the error and turns a symbol that the driver
doesn't have into Unsupported instead of a crash. The bindings have no type stubs: their values are `Any` here and are
narrowed by the small modules that use them.

Limits: only the driver API. A context must be current in the calling thread for most calls: `with gpu.current():`.
"""

from __future__ import annotations

import ctypes
import functools
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from kybernate.model.errors import KybernateError, Unsupported
from kybernate.model.types import GpuUuid

_HOW_TO_MEND = "install the NVIDIA driver; without a GPU `kybernate up --simulated`"

_UNKNOWN = re.compile(r"(-?\d+) is not a valid (CU\w+)")
_NEWER = "this machine's CUDA driver is newer than the installed cuda-bindings, which have no name for that"
_HINTS = {
    "CUDA_ERROR_NO_DEVICE": "nvidia-smi shows whether the GPU is there and given to this container",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "the kernel module and the driver's libraries differ; reboot after the upgrade",
    "CUDA_ERROR_ILLEGAL_ADDRESS": "the agent's own context is broken; restart the agent, workloads run on",
}


class CudaError(KybernateError):
    """A CUDA call failed. `name` is the result's name (CUDA_ERROR_..., or CUresult N where it has none), `call` the function's."""

    code = "cuda"

    def __init__(self, name: str, call: str, *, hint: str | None = None) -> None:
        super().__init__(f"{call} failed with {name}", hint=hint or _HINTS.get(name))
        self.name = name
        self.call = call

    @property
    def out_of_memory(self) -> bool:
        return self.name == "CUDA_ERROR_OUT_OF_MEMORY"


@functools.cache
def bindings() -> Any:
    """cuda.bindings.driver, imported on first use: it costs 0.1 s and 24 MiB, which the command line needn't pay.

    Raises:
        Unsupported: the package is missing.
    """
    try:
        from cuda.bindings import driver
    except ImportError as e:
        raise Unsupported(
            "the Python package cuda-bindings can't be imported", hint=f"pip install cuda-bindings: {e}"
        ) from e
    return driver


def check(result: tuple[Any, ...], call: str) -> Any:
    """What a binding's call returned beside its status: None, one value or a tuple.

    Raises:
        CudaError: the status isn't success.
    """
    status = result[0]
    if status:
        raise CudaError(getattr(status, "name", str(status)), call)
    if len(result) == 1:
        return None
    return result[1] if len(result) == 2 else result[1:]


def call(name: str, *arguments: Any) -> Any:
    """Call a driver function by its name without version suffix.

    Raises:
        CudaError: it failed.
        Unsupported: this driver has no such function, or there is no driver.
    """
    return check(status_of(name, *arguments), name)


def status_of(name: str, *arguments: Any) -> tuple[Any, ...]:
    """As `call`, but hands back the raw status first, for calls whose failures mean something.

    Raises:
        Unsupported: this driver has no such function, or there is no driver.
    """
    function = getattr(bindings(), name, None)
    if function is None:
        raise Unsupported(f"the installed cuda-bindings has no {name}", hint="upgrade cuda-bindings")
    try:
        answer: tuple[Any, ...] = function(*arguments)
    except RuntimeError as e:  # the bindings' own answer to a missing library or symbol
        if "not found" not in str(e) and "Failure finding" not in str(e) and "can only be found" not in str(e):
            raise
        raise Unsupported(f"this machine's CUDA driver has no {name}", hint=_HOW_TO_MEND) from e
    except ValueError as e:  # the bindings' own answer to a number that they have no name for
        if (unknown := _UNKNOWN.match(str(e))) is None:
            raise
        raise CudaError(f"{unknown[2]} {unknown[1]}", name, hint=_NEWER) from e
    return answer


@dataclass(frozen=True, slots=True, eq=False)
class Gpu:
    """One GPU and the agent's primary context on it, which is kept as long as the process lives."""

    index: int
    uuid: GpuUuid
    uuid_bytes: bytes
    """The 16 bytes of CUuuid, as they travel on the wire."""
    name: str
    total_bytes: int
    simulated: bool
    compute_capability: tuple[int, int]
    context: Any = field(repr=False)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the GPU's context current in this thread for the block. May be nested, also over several GPUs."""
        call("cuCtxPushCurrent", self.context)
        try:
            yield
        finally:
            call("cuCtxPopCurrent")

    def free_bytes(self) -> int:
        """VRAM that nobody holds, in bytes, as the driver says at this moment."""
        with self.current():
            free, _ = call("cuMemGetInfo")
        return int(free)

    def driver_version(self) -> int:
        """The driver's CUDA version as 1000 * major + 10 * minor."""
        return int(call("cuDriverGetVersion"))


def is_simulated() -> bool:
    """Whether libcuda.so.1 is the simulated driver. Raises Unsupported when there is none at all."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as e:
        raise Unsupported("this machine has no CUDA driver (libcuda.so.1)", hint=_HOW_TO_MEND) from e
    return hasattr(library, "kybernate_simulated_version")


def open_gpus() -> list[Gpu]:
    """Initialise CUDA and take the primary context of each GPU (about 0.5 GB of VRAM each, kept on purpose).

    Raises:
        Unsupported: no driver, no GPU, or a GPU without shareable virtual memory.
    """
    simulated = is_simulated()
    try:
        call("cuInit", 0)
        count = int(call("cuDeviceGetCount"))
    except CudaError as e:
        raise Unsupported(f"the CUDA driver can't be used: {e.message}", hint=e.hint or _HOW_TO_MEND) from e
    if count == 0:
        raise Unsupported("the CUDA driver sees no GPU", hint=_HINTS["CUDA_ERROR_NO_DEVICE"])
    return [_open_gpu(index, simulated=simulated) for index in range(count)]


def _open_gpu(index: int, *, simulated: bool) -> Gpu:
    device = call("cuDeviceGet", index)
    attribute = bindings().CUdevice_attribute
    for wanted in (
        attribute.CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED,
        attribute.CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED,
    ):
        if not call("cuDeviceGetAttribute", wanted, device):
            raise Unsupported(f"GPU {index} lacks {wanted.name}, so memory can't be handed between processes there")
    raw = bytes(call("cuDeviceGetUuid", device).bytes)
    name = call("cuDeviceGetName", 128, device)
    return Gpu(
        index=index,
        uuid=GpuUuid(f"GPU-{uuid.UUID(bytes=raw)}"),
        uuid_bytes=raw,
        name=name.split(b"\0", 1)[0].decode("utf-8", "replace"),
        total_bytes=int(call("cuDeviceTotalMem", device)),
        simulated=simulated,
        compute_capability=(
            int(call("cuDeviceGetAttribute", attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device)),
            int(call("cuDeviceGetAttribute", attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device)),
        ),
        context=call("cuDevicePrimaryCtxRetain", device),
    )
