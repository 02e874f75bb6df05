"""A process that calls the simulated driver by name, as the tests tell it. No CUDA package, ctypes only.

Run as `python worker.py FD`: FD is a SOCK_SEQPACKET socket that carries one JSON request a packet and its answer.
Arguments of a call: a number; {"out": BYTES} a zeroed buffer whose content comes back; {"in": HEX} a buffer;
{"received": I} the I-th file descriptor that came with the request.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import struct
import sys
import threading
from pathlib import Path
from typing import Any

ARGUMENTS_MAX = 1 << 20
CallResult = tuple[int, list[str]]


class IpcHandle(ctypes.Structure):
    """CUipcMemHandle, which calls take by value."""

    _fields_ = (("reserved", ctypes.c_char * 64),)


class Worker:
    def __init__(self, channel: socket.socket) -> None:
        self.library = ctypes.CDLL("libcuda.so.1")
        self.channel = channel
        self.background: dict[int, tuple[threading.Thread, list[CallResult]]] = {}
        self.children: list[int] = []
        self.context: int | None = None

    def enter_context(self) -> None:
        if self.context is not None:
            self.library.cuCtxSetCurrent(ctypes.c_void_p(self.context))

    def call(self, name: str, arguments: list[Any], fds: list[int]) -> CallResult:
        converted: list[Any] = []
        outs: list[ctypes.Array[ctypes.c_char]] = []
        for argument in arguments:
            if isinstance(argument, int):
                converted.append(ctypes.c_uint64(argument & (1 << 64) - 1))
            elif "out" in argument:
                outs.append(ctypes.create_string_buffer(argument["out"]))
                converted.append(outs[-1])
            elif "in" in argument:
                content = bytes.fromhex(argument["in"])
                converted.append(ctypes.create_string_buffer(content, len(content)))
            else:
                converted.append(ctypes.c_uint64(fds[argument["received"]]))
        result = getattr(self.library, name)(*converted)
        return result, [out.raw.hex() for out in outs]

    def launch(self, kernel: str, values: list[int], stream: int) -> CallResult:
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        if error := self.library.cuModuleLoadData(ctypes.byref(module), b"KYBERNATE-SIMULATED\0"):
            return error, []
        if error := self.library.cuModuleGetFunction(ctypes.byref(function), module, kernel.encode()):
            return error, []
        words = [ctypes.c_uint64(value) for value in values]
        pointers = (ctypes.c_void_p * len(words))(*[ctypes.addressof(word) for word in words])
        dimensions = [ctypes.c_uint(1)] * 6
        return (
            self.library.cuLaunchKernel(
                function, *dimensions, ctypes.c_uint(0), ctypes.c_void_p(stream), pointers, ctypes.c_void_p(0)
            ),
            [],
        )

    def fork_and_init(self) -> CallResult:
        pid = os.fork()
        if pid == 0:
            links = [Path(f"/proc/self/fd/{fd}") for fd in range(3, 256)]
            held = [str(link.readlink()) for link in links if link.is_symlink()]
            directory = os.environ["KYBERNATE_SIMULATED_GPU"]
            os._exit(self.library.cuInit(0) + (64 if any(directory in name for name in held) else 0))
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), []

    def answer(self, request: dict[str, Any], fds: list[int]) -> tuple[Any, list[int]]:
        match request["do"]:
            case "call":
                return self.call(request["name"], request["arguments"], fds), []
            case "setup":
                context = ctypes.c_void_p()
                errors = [self.library.cuInit(0), self.library.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)]
                self.context = context.value
                self.enter_context()
                return errors, []
            case "launch":
                return self.launch(request["kernel"], request["values"], request["stream"]), []
            case "start" | "start_launch":
                results: list[CallResult] = []

                def run() -> None:
                    self.enter_context()
                    if request["do"] == "start":
                        results.append(self.call(request["name"], request["arguments"], []))
                    else:
                        results.append(self.launch(request["kernel"], request["values"], 0))

                thread = threading.Thread(target=run, daemon=True)
                thread.start()
                self.background[thread.native_id or 0] = (thread, results)
                return thread.native_id, []
            case "join":
                thread, results = self.background[request["thread"]]
                thread.join(request["timeout_s"])
                return results[0] if results else None, []
            case "peek":
                return ctypes.string_at(request["address"], request["size"]).hex(), []
            case "poke":
                ctypes.memmove(request["address"], bytes.fromhex(request["content"]), len(request["content"]) // 2)
                return None, []
            case "ipc_open":
                address = ctypes.c_uint64()
                handle = IpcHandle.from_buffer_copy(bytes.fromhex(request["handle"]))
                result = self.library.cuIpcOpenMemHandle_v2(ctypes.byref(address), handle, ctypes.c_uint(1))
                return (result, address.value), []
            case "restore_on":
                pairs = bytes.fromhex(request["pairs"])
                buffer = ctypes.create_string_buffer(pairs, len(pairs))
                words = struct.pack("<QI52x", ctypes.addressof(buffer), len(pairs) // 32)
                return self.library.cuCheckpointProcessRestore(request["pid"], words), []
            case "become":
                os.setuid(request["uid"])
                return None, []
            case "send_fd":
                return None, [request["fd"]]
            case "close_fd":
                os.close(request["fd"])
                return None, []
            case "fork":
                return self.fork_and_init(), []
            case unknown:
                raise ValueError(unknown)

    def serve(self) -> None:
        while True:
            packet, fds, _, _ = socket.recv_fds(self.channel, ARGUMENTS_MAX, 64)
            if not packet:
                return
            reply, sent = self.answer(json.loads(packet), list(fds))
            for fd in fds:
                os.close(fd)
            socket.send_fds(self.channel, [json.dumps(reply).encode()], sent)


if __name__ == "__main__":
    Worker(socket.socket(fileno=int(sys.argv[1]))).serve()
