"""Holds back every packet of a workload's own sockets, while CRIU looks at them and while it makes them anew.

Both ends of a loopback connection are dumped one after the other: what moved in between would be in neither, or in both.
And CRIU sends what a socket had not sent yet when the other end isn't there yet: the kernel would answer with a reset.

A program of five instructions is linked to the workload's cgroup (BPF_CGROUP_INET_INGRESS and _EGRESS), which drops all but
CRIU's own packets, by their mark: it sends a FIN to a socket that had received one. The link is a descriptor: whoever holds it
may be killed, and the kernel takes the lock off. TCP sends again what was dropped. It needs nothing but a kernel with
CONFIG_CGROUP_BPF (Linux 5.7) and CAP_SYS_ADMIN, and works in the host's network, too, where it touches nobody else.

Imported by the supervisor: so nothing but ctypes and the built-ins.
"""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

_BPF = {"x86_64": 321, "aarch64": 280}
_PROG_LOAD, _LINK_CREATE = 5, 28
_CGROUP_SKB = 8
_INGRESS, _EGRESS = 0, 1
_CRIU_MARK = 0xC114
"""SOCCR_MARK of CRIU."""
_MARK_OFFSET = 8
"""Of `mark` in struct __sk_buff."""
_ATTRIBUTES_BYTES = 128

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class NetworkLock:
    """Held until `close`, or until every process that has its descriptors has ended."""

    def __init__(self, links: list[int]) -> None:
        self._links = links

    def close(self) -> None:
        """Let packets through again. May be called again."""
        while self._links:
            os.close(self._links.pop())


def hold(cgroup: Path | str) -> NetworkLock:
    """Drop every packet that a socket of this cgroup, or of one below it, sends or would receive, from now on.

    Args:
        cgroup: its directory.

    Raises:
        OSError: the kernel can't, or no right to.
    """
    return _linked(cgroup, _only_marked())


def hindrance(cgroup: Path | str) -> str | None:
    """Why packets of this cgroup can't be held back; None: they can be. Tried with a program that drops nothing."""
    try:
        _linked(cgroup, _everything()).close()
    except OSError as e:
        return str(e.strerror)
    return None


def _linked(cgroup: Path | str, program: bytes) -> NetworkLock:
    directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    links: list[int] = []
    lock = NetworkLock(links)
    try:
        loaded = _load(program)
        try:
            for where in (_INGRESS, _EGRESS):
                links.append(_bpf(_LINK_CREATE, loaded, directory, where, 0))  # noqa: PERF401 - one may fail
        except BaseException:
            lock.close()
            raise
        finally:
            os.close(loaded)
    finally:
        os.close(directory)
    return lock


def _load(program: bytes) -> int:
    code, license_ = ctypes.create_string_buffer(program, len(program)), ctypes.create_string_buffer(b"Apache-2.0")
    instructions = len(program) // 8
    return _bpf(_PROG_LOAD, _CGROUP_SKB, instructions, *_split(code), *_split(license_))


def _split(buffer: ctypes.Array[ctypes.c_char]) -> tuple[int, int]:
    address = ctypes.addressof(buffer)
    return address & 0xFFFFFFFF, address >> 32


def _bpf(command: int, *numbers: int) -> int:
    """bpf(2) with 32-bit attributes; returns a descriptor, which an exec closes."""
    try:
        call = _BPF[os.uname().machine]
    except KeyError:
        raise OSError(38, f"unknown on {os.uname().machine}") from None
    attributes = (ctypes.c_uint32 * (_ATTRIBUTES_BYTES // 4))(*numbers)
    result: int = _libc.syscall(
        ctypes.c_long(call), ctypes.c_long(command), ctypes.byref(attributes), ctypes.c_long(_ATTRIBUTES_BYTES)
    )
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _instruction(code: int, *, to: int = 0, of: int = 0, offset: int = 0, value: int = 0) -> bytes:
    head = bytes((code, of << 4 | to)) + offset.to_bytes(2, "little")
    return head + value.to_bytes(4, "little")


_MOVE, _LOAD, _SKIP_IF_NOT, _EXIT = 0xB7, 0x61, 0x55, 0x95


def _everything() -> bytes:
    return _instruction(_MOVE, to=0, value=1) + _instruction(_EXIT)


def _only_marked() -> bytes:
    return b"".join(
        (
            _instruction(_MOVE, to=0, value=0),
            _instruction(_LOAD, to=2, of=1, offset=_MARK_OFFSET),
            _instruction(_SKIP_IF_NOT, to=2, offset=1, value=_CRIU_MARK),
            _instruction(_MOVE, to=0, value=1),
            _instruction(_EXIT),
        )
    )
