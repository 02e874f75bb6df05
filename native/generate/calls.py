#!/usr/bin/env python3
"""Write native/preload/generated/calls.inc: every entry point of the CUDA driver API that the preload library wraps.

The prototypes come from cuda.h, which NVIDIA ships in the wheel nvidia-cuda-runtime; the header itself is not part of
this project. The output holds names and argument widths only (handles are `void *`, enumerations `int`), so that the
library builds without a CUDA toolkit.

    python native/generate/calls.py path/to/cuda.h > native/preload/generated/calls.inc

Each line is one exported symbol, with every version and per-thread-stream variant of its own:

    KYB_GATED(gate, symbol, (parameters), (arguments))   waits at `gate`, then calls the driver
    KYB_CUSTOM(symbol, (parameters))                     written by hand in the library

Which entry point belongs where is decided by the tables below. Whatever no table names waits at the memory gate: an entry
point of a future CUDA version is then safe, if perhaps gated without need.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HEADER_VERSION = "13.0 (nvidia-cuda-runtime 13.0.96)"

# cuda.h picks symbol names by macro; these three readings together show every symbol.
READINGS = ([], ["-DCUDA_API_PER_THREAD_DEFAULT_STREAM"], ["-D__CUDA_API_VERSION_INTERNAL"])

CUSTOM = {
    "cuInit": "starts the control thread",
    "cuGetProcAddress": "hands out wrappers",
    "cuMemAlloc": "extents",
    "cuMemFree": "extents",
    "cuMemFreeAsync": "extents",
    "cuMemGetAddressRange": "an extent is not an allocation",
    "cuMemGetInfo": "what is kept for the next allocation is free",
    "cuPointerGetAttribute": "likewise",
    "cuPointerGetAttributes": "likewise",
    "cuMemAllocManaged": "counted: no pause while it lives",
    "cuMemCreate": "logical handles",
    "cuMemRelease": "logical handles",
    "cuMemMap": "logical handles",
    "cuMemUnmap": "logical handles",
    "cuMemSetAccess": "recorded, to be replayed",
    "cuMemRetainAllocationHandle": "logical handles",
    "cuMemExportToShareableHandle": "logical handles; counted",
    "cuMemImportFromShareableHandle": "counted: an imported handle must not be mapped at a checkpoint",
    "cuMemGetAllocationPropertiesFromHandle": "logical handles",
    "cuMemGetHandleForAddressRange": "counted",
    "cuMulticastCreate": "counted",
    "cuMulticastBindMem": "logical handles; counted",
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
    "cuStreamEndCapture": "open captures are waited for",
    "cuStreamDestroy": "a capture ends with its stream",
}

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

# Neither touch GPU memory nor wait for the GPU: questions, and bookkeeping of the driver inside the process.
FREE = re.compile(
    r"cu(DriverGetVersion|GetErrorString|GetErrorName|GetExportTable|Checkpoint\w+|Coredump\w+|Profiler\w+|Logs\w+"
    r"|Device(?!PrimaryCtx)(?!GraphMemTrim)(?!RegisterAsync)(?!UnregisterAsync)\w+|DevicePrimaryCtxGetState|DevicePrimaryCtxSetFlags"
    r"|Ctx(Get|Set|Push|Pop|Attach|Detach)\w+|ThreadExchangeStreamCaptureMode|Occupancy\w+"
    r"|Stream(Get|Is)\w+|Func(Get|Set|Is)\w+|Module(Get|Enumerate)\w+|Kernel(Get|Set)\w+|Library(Get|Enumerate)(?!Managed)\w+"
    r"|MemHostGet\w+|MemGetAllocationGranularity|MemGetAccess|MemPoolGet\w+|MemGetDefaultMemPool|MemGetMemPool|MulticastGetGranularity"
    r"|TexRef\w+|SurfRef\w+|TensorMap\w+|Graph(?!Launch|Upload|Instantiate|Exec|Destroy|Mem|AddMem)\w+|Param\w+|UserObject\w+)"
)

VARIANT = re.compile(r"(_v\d+)?(_ptsz|_ptds)?$")


def preprocess(header: Path, defines: list[str]) -> str:
    command = ["cc", "-E", "-P", f"-I{header.parent}", *defines, str(header)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> None:
    header = Path(sys.argv[1])
    text = "\n".join(preprocess(header, defines) for defines in READINGS)
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
        }
        if kind in known:
            return known[kind]
        if kind in ("int", "float", "size_t", "unsigned int", "unsigned char", "unsigned short"):
            return kind
        if kind in enums:
            return "int"
        raise SystemExit(f"don't know how wide {kind!r} is: add it to the tables of {sys.argv[0]}")

    prototypes: dict[str, list[str]] = {}
    narrow = set()  # first versions with 32-bit device pointers: no 64-bit process calls them
    for name, parameters in re.findall(r"CUresult\s+(cu\w+)\(([^;]*?)\);", text, re.DOTALL):
        if "CUdeviceptr_v1" in parameters:
            narrow.add(name)
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

    print("/* Generated by native/generate/calls.py from cuda.h of CUDA", HEADER_VERSION, "- do not edit. */")
    for name in sorted(prototypes.keys() - narrow):
        base = VARIANT.sub("", name)
        kinds = prototypes[name]
        parameters = ", ".join(f"{kind} a{i}".replace("* a", "*a") for i, kind in enumerate(kinds)) or "void"
        arguments = ", ".join(f"a{i}" for i in range(len(kinds)))
        if base in CUSTOM:
            print(f"KYB_CUSTOM({name}, ({parameters}))")
        elif base in LAUNCH:
            print(f"KYB_GATED(KYB_GATE_LAUNCH, {name}, ({parameters}), ({arguments}))")
        elif not FREE.fullmatch(base):
            print(f"KYB_GATED(KYB_GATE_MEMORY, {name}, ({parameters}), ({arguments}))")


if __name__ == "__main__":
    main()
