#!/usr/bin/env python3
"""Write native/preload/generated/calls.inc: every entry point of the CUDA driver API that the preload library wraps.

The prototypes come from cuda.h, which NVIDIA ships in the wheel nvidia-cuda-runtime; the header itself is not part of
this project. The output holds names and argument widths only (handles are `void *`, enumerations `int`), so that the
library builds without a CUDA toolkit.

    python native/generate/calls.py path/to/cuda.h > native/preload/generated/calls.inc

Each line is one exported symbol, with every version and per-thread-stream variant of its own:

    KYB_GATED(gate, symbol, (parameters), (arguments))   waits at `gate`, then calls the driver
    KYB_CUSTOM(symbol, (parameters))                     written by hand in the library

Which entry point belongs where is decided by the tables below, each with its reason. Whatever no table names waits at the memory
gate: an entry point of a future CUDA version is then safe, if perhaps gated without need.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

# cuda.h picks symbol names by macro; these three readings together show every symbol.
READINGS = ([], ["-DCUDA_API_PER_THREAD_DEFAULT_STREAM"], ["-D__CUDA_API_VERSION_INTERNAL"])

CUSTOM = {
    "cuInit": "no gate, no memory: starts the control thread",
    "cuGetProcAddress": "no gate, no memory: hands out wrappers",
    "cuMemAlloc": "extents",
    "cuMemFree": "extents",
    "cuMemFreeAsync": "extents",
    "cuMemGetAddressRange": "an extent is not an allocation; of ours answered from our tables, which needs no gate",
    "cuMemGetAccess": "what is kept for the next allocation is gone",
    "cuMemGetInfo": "what is kept for the next allocation is free",
    "cuPointerGetAttribute": "an extent is not an allocation, and comes back as another one",
    "cuPointerGetAttributes": "likewise",
    "cuPointerSetAttribute": "recorded, to be replayed",
    "cuMemAllocManaged": "counted: no pause while it lives",
    "cuMemCreate": "logical handles",
    "cuMemRelease": "logical handles",
    "cuMemMap": "logical handles",
    "cuMemUnmap": "logical handles",
    "cuMemSetAccess": "recorded, to be replayed",
    "cuMemRetainAllocationHandle": "logical handles",
    "cuMemExportToShareableHandle": "logical handles; counted",
    "cuMemImportFromShareableHandle": "counted: an imported handle must not be mapped at a checkpoint",
    "cuMemGetAllocationPropertiesFromHandle": "logical handles; of ours answered from our tables, which needs no gate",
    "cuMemGetHandleForAddressRange": "counted",
    "cuMulticastCreate": "counted",
    "cuMulticastBindMem": "logical handles; counted",
    "cuLogicalEndpointCreate": "counted",
    "cuLogicalEndpointImport": "counted",
    "cuIpcGetMemHandle": "emulated for extents; counted",
    "cuIpcOpenMemHandle": "emulated for extents; counted",
    "cuIpcCloseMemHandle": "emulated for extents; counted",
    "cuIpcGetEventHandle": "counted",
    "cuIpcOpenEventHandle": "counted",
    "cuImportExternalMemory": "counted",
    "cuDestroyExternalMemory": "counted",
    "cuCtxDestroy": "frees the context's extents",
    "cuCtxCreate": "the list of contexts to synchronise",
    "cuCtxEnablePeerAccess": "replayed as access to extents",
    "cuCtxDisablePeerAccess": "likewise",
    "cuDevicePrimaryCtxRetain": "the list of contexts to synchronise",
    "cuDevicePrimaryCtxRelease": "frees the context's extents",
    "cuDevicePrimaryCtxReset": "frees the context's extents",
    "cuStreamBeginCapture": "open captures are waited for",
    "cuStreamBeginCaptureToGraph": "open captures are waited for",
    "cuStreamBeginRecaptureToGraph": "open captures are waited for",
    "cuStreamBeginCaptureToCig": "open captures are waited for",
    "cuStreamEndCapture": "open captures are waited for",
    "cuStreamEndCaptureToCig": "open captures are waited for",
    "cuStreamDestroy": "a capture ends with its stream",
}
"""Written by hand, and why. All wait at the memory gate (questions of ASK at theirs, the begin of a capture at that of launches)
but where the reason says that they need none."""

LAUNCH = {
    "cuLaunch",
    "cuLaunchCooperativeKernel",
    "cuLaunchCooperativeKernelMultiDevice",
    "cuLaunchGrid",
    "cuLaunchGridAsync",
    "cuLaunchKernel",
    "cuLaunchKernelEx",
    "cuGraphLaunch",
}

ASK = {
    "cuMemGetAccess": "of an unmapped address: INVALID_VALUE",
    "cuMemGetAddressRange": "of an unmapped address: NOT_FOUND",
    "cuMemGetLocationInfo": "looks where the pages of a range lie",
    "cuPointerGetAttribute": "of an unmapped address: INVALID_VALUE",
    "cuPointerGetAttributes": "of an unmapped address: success, with memory type 0",
    "cuTensorMapEncodeIm2col": "takes an address; whether the driver looks it up is its own affair",
    "cuTensorMapEncodeIm2colWide": "likewise",
    "cuTensorMapEncodeTiled": "likewise",
    "cuTensorMapReplaceAddress": "likewise",
}
"""Questions about addresses: no work for the GPU, and over in a moment. They wait while extents are unmapped, not before: who asks
may hold a lock that GPU work which is still waited for needs (a host function that takes Python's lock)."""

FREE = {
    "the driver's own words": """
        DriverGetVersion GetErrorString GetErrorName GetExportTable Checkpoint\\w+ Coredump\\w+ Profiler\\w+ Logs\\w+""",
    "devices and their pools, whose memory is never unmapped": """
        Device(?:Get|CanAccess|Compute|Total)\\w* DeviceSet(?:MemPool|GraphMemAttribute) DevicePrimaryCtx(?:GetState|SetFlags)
        Mem(?:GetDefaultMemPool|GetMemPool) MemPoolGet\\w+""",
    "which context is current, and its settings; not cuCtxSetLimit, which makes stacks and heaps anew": """
        Ctx(?:Get|Push|Pop|Attach|Detach)\\w+ CtxSet(?:Current|Flags|CacheConfig|SharedMemConfig)
        ThreadExchangeStreamCaptureMode""",
    "names and layouts of code; not what may load it, since that takes memory": """
        Func(?:GetModule|GetName|GetParam\\w+|IsLoaded) FuncSet(?:BlockShape|SharedSize) Param\\w+ ModuleGetLoadingMode
        Kernel(?:GetName|GetLibrary|GetParam\\w+)""",
    "streams' properties": "Stream(?:Get|Is)\\w+",
    "pinned host memory, which is never unmapped": "MemHostGet\\w+",
    "sizes that hold for a kind of memory": "MemGetAllocationGranularity MulticastGetGranularity",
    "settings of texture references, and what was bound to them; not the binding": """
        TexRef(?:Create|Destroy|Get\\w+) SurfRefGetArray
        TexRefSet(?:AddressMode|BorderColor|FilterMode|Flags|Format|MaxAnisotropy|Mipmap(?:FilterMode|LevelBias|LevelClamp))""",
    "a graph's shape; not nodes with addresses or code in them": """
        Graph(?:Create|Get\\w+|AddEmptyNode|(?:Add|Remove)Dependencies|DebugDotPrint|RetainUserObject|ReleaseUserObject)
        GraphNode(?:Get\\w+|FindInClone|SetEnabled) GraphChildGraphNodeGetGraph GraphKernelNodeGet\\w+
        Graph(?:Add)?Event(?:Record|Wait)Node\\w* Graph(?:Add)?HostNode\\w* GraphBatchMemOpNodeGetParams
        GraphExternalSemaphores(?:Signal|Wait)NodeGetParams UserObject\\w+""",
}
"""Patterns of names without `cu`, by why they need no wrapper: they touch no GPU memory, take and free none, and don't wait for the
GPU."""

FREE_WITH_ADDRESS = {
    "cuMemHostGetDevicePointer": "the address of pinned host memory, which is never unmapped",
    "cuTexRefGetAddress": "the address that was bound, in the driver's own notes",
}
"""Whatever else has a device address in its prototype waits. One that nobody has decided on ends this program."""

VARIANT = re.compile(r"(_v\d+)?(_ptsz|_ptds)?$")


def preprocess(header: Path, defines: list[str]) -> str:
    command = ["cc", "-E", "-P", f"-I{header.parent}", *defines, str(header)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def base_of(symbol: str) -> str:
    """The call's name, without version and stream variant."""
    return VARIANT.sub("", symbol)


def is_free(base: str) -> bool:
    """Whether a call gets no wrapper."""
    named = base in CUSTOM or base in LAUNCH or base in ASK
    patterns = (pattern for group in FREE.values() for pattern in group.split())
    return not named and any(re.fullmatch(pattern, base.removeprefix("cu")) for pattern in patterns)


def prototypes_of(text: str) -> list[tuple[str, str]]:
    """Symbol and parameters of every call in the preprocessed header."""
    return re.findall(r"CUresult\s+(cu\w+)\(([^;]*?)\);", text, re.DOTALL)


def read(header: Path) -> str:
    return "\n".join(preprocess(header, defines) for defines in READINGS)


def version_of(header: Path) -> str:
    found = re.search(r"#define CUDA_VERSION (\d+)", header.read_text())
    number = int(found[1]) if found else 0
    return f"{number // 1000}.{number % 1000 // 10}"


def generate(header: Path) -> str:
    """The whole list. Raises SystemExit for what the tables don't know."""
    text = read(header)
    pointers = set(re.findall(r"typedef\s+(?:const\s+)?struct\s+\w+\s*\*\s*(\w+);", text))
    pointers |= set(re.findall(r"typedef\s+\w[\w\s]*\(\s*\*\s*(\w+)\s*\)\s*\(", text))
    enums = set(re.findall(r"}\s*(\w+);", text)) - {"CUmemLocation", "CUipcMemHandle", "CUipcEventHandle"}

    def width(kind: str) -> str:
        kind = re.sub(r"\b(const|struct|enum)\b", "", kind).strip()
        if "*" in kind or kind in pointers:
            return "void *"
        known = {
            "CUdeviceptr": "uint64_t",
            "CUdeviceptr_v1": "unsigned int",
            "CUmemGenericAllocationHandle": "uint64_t",
            "CUtexObject": "uint64_t",
            "CUsurfObject": "uint64_t",
            "cuuint64_t": "uint64_t",
            "cuuint32_t": "unsigned int",
            "unsigned long long": "uint64_t",
            "unsigned": "unsigned int",
            "CUdevice": "int",
            "CUstreamAttrID": "int",
            "CUkernelNodeAttrID": "int",
            "CUmemLocation": "struct kyb_mem_location",
            "CUipcMemHandle": "struct kyb_ipc_handle",
            "CUipcEventHandle": "struct kyb_ipc_handle",
            "CUlogsCallbackHandle": "void *",
            "CUasyncCallbackHandle": "void *",
            "CUlogicalEndpointId": "unsigned int",
        }
        if kind in known:
            return known[kind]
        if kind in ("int", "float", "size_t", "unsigned int", "unsigned char", "unsigned short"):
            return kind
        if kind in enums:
            return "int"
        raise SystemExit(f"don't know how wide {kind!r} is: add it to the tables of {__file__}")

    prototypes: dict[str, list[str]] = {}
    narrow = set()  # first versions with 32-bit device pointers: no 64-bit process calls them
    for name, parameters in prototypes_of(text):
        if "CUdeviceptr_v1" in parameters:
            narrow.add(name)
        elif "CUdeviceptr" in parameters and is_free(base_of(name)) and base_of(name) not in FREE_WITH_ADDRESS:
            raise SystemExit(f"{name} has a device address: decide whether it waits, in the tables of {__file__}")
        kinds = []
        for parameter in " ".join(parameters.split()).split(","):
            parameter = parameter.strip()
            if parameter in ("", "void"):
                continue
            if "*" in parameter or "[" in parameter:
                kinds.append("void *")
            else:
                kinds.append(width(re.sub(r"\s+\w+$", "", parameter) if " " in parameter else parameter))
        prototypes.setdefault(name, kinds)

    lines = [f"/* Generated by native/generate/calls.py from cuda.h of CUDA {version_of(header)} - do not edit. */"]
    for name in sorted(prototypes.keys() - narrow):
        base = base_of(name)
        kinds = prototypes[name]
        parameters = ", ".join(f"{kind} a{i}".replace("* a", "*a") for i, kind in enumerate(kinds)) or "void"
        arguments = ", ".join(f"a{i}" for i in range(len(kinds)))
        gate = "LAUNCH" if base in LAUNCH else "ASK" if base in ASK else "MEMORY"
        if base in CUSTOM:
            lines.append(f"KYB_CUSTOM({name}, ({parameters}))")
        elif not is_free(base):
            lines.append(f"KYB_GATED(KYB_GATE_{gate}, {name}, ({parameters}), ({arguments}))")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(generate(Path(sys.argv[1])))
