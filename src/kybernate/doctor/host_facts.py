"""Looks at the machine: the facts the doctor judges. Reads and probes, changes nothing, judges nothing.

Makes no CUDA context (a context costs half a GB of VRAM): `cuInit` and a few questions by ctypes, so it also
answers where cuda-bindings is broken, which is when a doctor is asked. A call of the driver library can't be
stopped once begun; a hung driver hangs the survey.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import importlib.util
import os
import re
import resource
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kybernate.model.errors import Unsupported
from kybernate.model.native import SIMULATED_NAME, preload_library
from kybernate.process import network_lock
from kybernate.process.criu import Criu, find_criu

_CHECKPOINT_CALL = "cuCheckpointProcessCheckpoint"
_CAP_SYS_ADMIN = 21
_CAP_IPC_LOCK = 14
_CAP_SYS_RESOURCE = 24
_PROBE_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """One GPU as the driver counts it. `total_bytes` of VRAM."""

    name: str
    total_bytes: int
    mig: bool


@dataclass(frozen=True, slots=True)
class DriverFacts:
    """The driver library that loads here."""

    release: str | None
    """Of the kernel module, as `580.159.04`; None when there is none, as with the simulated driver."""
    cuda_version: int
    """As cuDriverGetVersion says: 13000 is CUDA 13.0."""
    checkpoint_api: bool
    error: str | None
    """Why cuInit failed."""
    gpus: tuple[GpuFacts, ...]
    simulated: bool
    """It is our own stand-in for machines without a GPU."""


@dataclass(frozen=True, slots=True)
class Facts:
    """All that the doctor judges. Sizes in bytes; None: not found."""

    driver: DriverFacts | None
    nvrtc: str | None
    preload: Path | None
    preload_problem: str
    criu: Criu | None
    criu_problem: str
    criu_check: str | None
    """What `criu check` complained of; None: content, or not asked since we aren't root."""
    uid: int
    sys_admin: bool
    ipc_lock: bool
    """Locks memory beyond the limit."""
    sys_resource: bool
    """Raises hard limits; containers often lack it though they have all else."""
    kernel: tuple[int, int]
    cgroup: Path | None
    cgroup_writable: bool
    namespaces_missing: tuple[str, ...]
    network_lock_problem: str | None
    """Why a workload's packets can't be held back; None: they can be, or not asked since we aren't root."""
    huge_tmpfs: str | None
    """The kernel's shmem_enabled setting; None: built without."""
    memlock_limit: int | None
    """None: unlimited."""
    file_limit_hard: int | None
    memory_total: int
    memory_available: int
    mps: str | None
    """What shows that the Multi-Process Service is on."""
    device_files: bool
    """The kernel module is loaded."""


def survey() -> Facts:
    """Look at this machine. Takes some 0.1 s, longer where the driver has to wake its GPUs."""
    preload, preload_problem = _preload()
    criu, criu_problem = _criu()
    root = os.geteuid() == 0
    cgroup = cgroup2()
    memory = _memory()
    return Facts(
        driver=driver_here(),
        nvrtc=_nvrtc(),
        preload=preload,
        preload_problem=preload_problem,
        criu=criu,
        criu_problem=criu_problem,
        criu_check=_criu_check(criu) if criu and root else None,
        uid=os.geteuid(),
        sys_admin=_capable(_CAP_SYS_ADMIN),
        ipc_lock=_capable(_CAP_IPC_LOCK),
        sys_resource=_capable(_CAP_SYS_RESOURCE),
        kernel=_kernel(),
        cgroup=cgroup,
        cgroup_writable=cgroup is not None and os.access(cgroup, os.W_OK),
        namespaces_missing=tuple(n for n in ("mnt", "pid", "ipc", "net") if not Path(f"/proc/self/ns/{n}").exists()),
        network_lock_problem=network_lock.hindrance(_own_group(cgroup)) if cgroup and root else None,
        huge_tmpfs=_chosen("/sys/kernel/mm/transparent_hugepage/shmem_enabled"),
        memlock_limit=_limit(resource.RLIMIT_MEMLOCK),
        file_limit_hard=_limit(resource.RLIMIT_NOFILE),
        memory_total=memory.get("MemTotal", 0),
        memory_available=memory.get("MemAvailable", 0),
        mps=_mps(),
        device_files=Path("/dev/nvidiactl").exists(),
    )


def cgroup2() -> Path | None:
    """Where the unified hierarchy is mounted: /sys/fs/cgroup, or /sys/fs/cgroup/unified beside the old controllers."""
    mounts = [line.split() for line in _text("/proc/self/mounts").splitlines()]
    return next((Path(fields[1]) for fields in mounts if len(fields) > 2 and fields[2] == "cgroup2"), None)


def _own_group(mounted: Path) -> Path:
    """Our own cgroup below that mount; the mount itself where ours lies outside."""
    own = next((line[4:] for line in _text("/proc/self/cgroup").splitlines() if line.startswith("0::/")), "")
    found = mounted / own
    return found if ".." not in found.parts and found.is_dir() else mounted


def _preload() -> tuple[Path | None, str]:
    try:
        return preload_library(), ""
    except Unsupported as e:
        return None, e.message


def _criu() -> tuple[Criu | None, str]:
    try:
        return find_criu(), ""
    except Unsupported as e:
        return None, e.message


def _criu_check(criu: Criu) -> str | None:
    try:
        answer = subprocess.run(
            [criu.path, "check"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        return str(e)
    if answer.returncode == 0:
        return None
    lines = (answer.stderr + answer.stdout).strip().splitlines()
    return lines[-1][:200] if lines else f"exit status {answer.returncode}"


def driver_here() -> DriverFacts | None:
    try:
        library = ctypes.CDLL(SIMULATED_NAME)
        for name, arguments in _DRIVER_CALLS.items():
            call = getattr(library, name)
            call.argtypes, call.restype = arguments, ctypes.c_int
    except (OSError, AttributeError):
        return None
    release = re.search(
        r"(?:Kernel Module\D*|NVRM version:.*?\s)(\d+\.\d+[.\d]*)", _text("/proc/driver/nvidia/version")
    )
    version, count = ctypes.c_int(), ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    status = library.cuInit(0)
    if status == 0:
        status = library.cuDeviceGetCount(ctypes.byref(count))
    return DriverFacts(
        release=release[1] if release else None,
        cuda_version=version.value,
        checkpoint_api=hasattr(library, _CHECKPOINT_CALL),
        error=_cuda_error(library, status) if status else None,
        gpus=tuple(_gpu(library, ordinal) for ordinal in range(count.value)),
        simulated=f"/simulated/{SIMULATED_NAME}\n" in _text("/proc/self/maps"),
    )


_INT_OUT = ctypes.POINTER(ctypes.c_int)
_DRIVER_CALLS: dict[str, list[type[ctypes._CDataType]]] = {
    "cuInit": [ctypes.c_uint],
    "cuDriverGetVersion": [_INT_OUT],
    "cuDeviceGetCount": [_INT_OUT],
    "cuDeviceGet": [_INT_OUT, ctypes.c_int],
    "cuDeviceGetName": [ctypes.c_char_p, ctypes.c_int, ctypes.c_int],
    "cuDeviceTotalMem_v2": [ctypes.POINTER(ctypes.c_size_t), ctypes.c_int],
    "cuGetErrorName": [ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)],
}


def _gpu(library: ctypes.CDLL, ordinal: int) -> GpuFacts:
    device, size, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(128)
    library.cuDeviceGet(ctypes.byref(device), ordinal)
    library.cuDeviceGetName(name, len(name), device)
    library.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    text = name.value.decode("utf-8", "replace")
    return GpuFacts(text, size.value, mig=" MIG " in f" {text} ")


def _cuda_error(library: ctypes.CDLL, status: int) -> str:
    text = ctypes.c_char_p()
    library.cuGetErrorName(status, ctypes.byref(text))
    return (text.value or b"").decode("ascii", "replace") or f"error {status}"


def _nvrtc() -> str | None:
    """Where the run-time compiler is: beside us as a wheel, in ld.so's cache, or in the toolkit's usual place."""
    with contextlib.suppress(ImportError):
        if (wheel := importlib.util.find_spec("nvidia")) is not None:
            for place in wheel.submodule_search_locations or ():
                for library in sorted(Path(place).glob("**/libnvrtc.so.*")):
                    return str(library)
    if cached := ctypes.util.find_library("nvrtc"):
        return cached
    for library in sorted(Path("/usr/local").glob("cuda*/targets/*/lib/libnvrtc.so.*"), reverse=True):
        return str(library)
    return None


def _mps() -> str | None:
    if directory := os.environ.get("CUDA_MPS_PIPE_DIRECTORY"):
        return f"CUDA_MPS_PIPE_DIRECTORY={directory}"
    return next((f"process {pid} {name}" for pid, name in _commands() if name.startswith("nvidia-cuda-mps")), None)


def _commands() -> Iterator[tuple[int, str]]:
    """The kernel cuts names to 15 characters: `nvidia-cuda-mps`."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (name := _text(entry / "comm").strip()):
            yield int(entry.name), name


def _capable(capability: int) -> bool:
    effective = re.search(r"^CapEff:\s*([0-9a-f]+)", _text("/proc/self/status"), re.MULTILINE)
    return bool(effective and int(effective[1], 16) >> capability & 1)


def _kernel() -> tuple[int, int]:
    major, minor = re.findall(r"\d+", os.uname().release)[:2]
    return int(major), int(minor)


def _limit(which: int) -> int | None:
    hard = resource.getrlimit(which)[1]
    return None if hard == resource.RLIM_INFINITY else hard


def _memory() -> dict[str, int]:
    found = re.findall(r"^(\w+):\s*(\d+) kB", _text("/proc/meminfo"), re.MULTILINE)
    return {name: int(kib) * 1024 for name, kib in found}


def _chosen(path: str) -> str | None:
    """The bracketed word of a sysfs choice."""
    match = re.search(r"\[(\w+)\]", _text(path))
    return match[1] if match else None


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
