"""A seccomp filter that answers two system calls as a kernel without them does, since what they make can't be dumped.

io_uring_setup, _enter and _register give ENOSYS, as in containers; libuv, MariaDB and others then do without. An MPTCP socket
gives EPROTONOSUPPORT, as in a kernel without it; Go's listeners then take TCP. It is a convenience and no boundary: nothing
is refused that would be dangerous. CRIU keeps the filter, so a restored process has it, too.

Imported by the supervisor: so nothing but ctypes and the built-ins. x86-64, its x32 and its 32-bit programs; there
socketcall(2) has its arguments in memory, where no filter sees them. The kernel asks a filter for `socket` only: it knows
that everything else always gets the same answer (Linux 5.11). Encoding: seccomp(2), linux/filter.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

_SECCOMP, _SET_MODE_FILTER, _SPEC_ALLOW = 317, 1, 4
"""SPEC_ALLOW: old kernels would slow down the whole process else (speculative store bypass)."""
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_X86_64, _I386 = 0xC000003E, 0x40000003
_NUMBER, _ARCHITECTURE, _FIRST, _THIRD = 0, 4, 16, 32
"""Offsets in struct seccomp_data: of arguments, the lower half, which is an int's."""
_LOAD, _AND, _EQUAL, _AT_LEAST, _ABOVE, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x25, 0x06
_WITHOUT_X32 = 0xBFFFFFFF
_IO_URING = (425, 427)
"""From setup to register; the same numbers everywhere."""
_SOCKET, _SOCKET_I386 = 41, 359
_AF_INET, _AF_INET6, _MPTCP = 2, 10, 262

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def install(*, io_uring: bool) -> None:
    """For the calling process, and all that it starts. Raises OSError: this kernel has no filters, or no right to.

    Needs CAP_SYS_ADMIN in place of no_new_privs, which would take their rights from set-uid programs.

    Args:
        io_uring: leave it alone.
    """
    instructions = program(io_uring=io_uring)
    buffer = ctypes.create_string_buffer(instructions)
    # struct sock_fprog: a length of 2 bytes, padding, a pointer.
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(instructions) // 8, ctypes.addressof(buffer)))
    arguments = [ctypes.c_long(number) for number in (_SECCOMP, _SET_MODE_FILTER, _SPEC_ALLOW)]
    if _libc.syscall(*arguments, header):
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")


def program(*, io_uring: bool) -> bytes:
    """The filter as BPF, 8 bytes an instruction."""
    native, other = _of_calls(_SOCKET, io_uring=io_uring), _of_calls(_SOCKET_I386, io_uring=io_uring)
    return b"".join(
        (
            _instruction(_LOAD, _ARCHITECTURE),
            _instruction(_EQUAL, _X86_64, no=len(native) // 8),
            native,
            _instruction(_EQUAL, _I386, no=len(other) // 8),
            other,
            _instruction(_RETURN, _ALLOW),
        )
    )


def _of_calls(socket: int, *, io_uring: bool) -> bytes:
    """What one architecture's calls get; it always returns."""
    no_rings = (
        _instruction(_AT_LEAST, _IO_URING[0], no=2),
        _instruction(_ABOVE, _IO_URING[1], yes=1),
        _instruction(_RETURN, _ERRNO | errno.ENOSYS),
    )
    return b"".join(
        (
            _instruction(_LOAD, _NUMBER),
            _instruction(_AND, _WITHOUT_X32),
            *(() if io_uring else no_rings),
            _instruction(_EQUAL, socket, no=6),
            _instruction(_LOAD, _FIRST),
            _instruction(_EQUAL, _AF_INET, yes=1),
            _instruction(_EQUAL, _AF_INET6, no=3),
            _instruction(_LOAD, _THIRD),
            _instruction(_EQUAL, _MPTCP, no=1),
            _instruction(_RETURN, _ERRNO | errno.EPROTONOSUPPORT),
            _instruction(_RETURN, _ALLOW),
        )
    )


def _instruction(code: int, value: int, *, yes: int = 0, no: int = 0) -> bytes:
    """struct sock_filter. `yes`, `no`: how many instructions to skip."""
    return struct.pack("HBBI", code, yes, no, value)
