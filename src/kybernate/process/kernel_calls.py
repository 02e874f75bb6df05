"""System calls about another thread or an open file that Python has no name for. x86-64, as all of Kybernate.

All raise OSError. Threads are named by their id in the caller's own pid namespace.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct

_SCHED_SETATTR, _SCHED_GETATTR, _IOPRIO_SET, _IOPRIO_GET = 314, 315, 251, 252
_WHO_PROCESS = 1
_ATTRIBUTES = struct.Struct("=IIQiIQQQ")
"""struct sched_attr as of Linux 3.14: size, policy, flags, nice, priority, runtime, deadline, period."""
_RUNTIME = 5
_FAIR = (os.SCHED_OTHER, os.SCHED_BATCH)
_ITIMERSPEC = struct.Struct("=qqqq")
_SECOND_NS = 10**9
_SET_TICKS = 0x40085400
"""TFD_IOC_SET_TICKS; needs CONFIG_CHECKPOINT_RESTORE, as CRIU does."""
_MQUEUE_MAGIC = 0x19800202
_EPOLL_SET, _EPOLL_GET = 0x40088A01, 0x80088A02
_EPOLL_BYTES = 8

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def is_message_queue(path: str) -> bool:
    """Whether the file is a POSIX message queue (statfs(2), MQUEUE_MAGIC)."""
    buffer = ctypes.create_string_buffer(256)
    _checked(_libc.statfs(os.fsencode(path), buffer))
    return int.from_bytes(buffer.raw[:8], "little") == _MQUEUE_MAGIC


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def io_priority(thread: int) -> int:
    """As ioprio_set(2) takes it: class and level."""
    return _checked(_libc.syscall(ctypes.c_long(_IOPRIO_GET), _WHO_PROCESS, thread))


def set_io_priority(thread: int, priority: int) -> None:
    _checked(_libc.syscall(ctypes.c_long(_IOPRIO_SET), _WHO_PROCESS, thread, priority))


def slice_ns(thread: int) -> int | None:
    """None: its policy has none, or this kernel (before 6.12) doesn't say."""
    found = _attributes(thread)
    return found[_RUNTIME] or None if found[1] in _FAIR else None


def set_slice_ns(thread: int, value: int) -> None:
    """Everything else that the scheduler knows of it stays."""
    found = list(_attributes(thread))
    found[_RUNTIME] = value
    buffer = ctypes.create_string_buffer(_ATTRIBUTES.pack(*found))
    _checked(_libc.syscall(ctypes.c_long(_SCHED_SETATTR), thread, buffer, 0))


def _attributes(thread: int) -> tuple[int, ...]:
    buffer = ctypes.create_string_buffer(_ATTRIBUTES.size)
    _checked(_libc.syscall(ctypes.c_long(_SCHED_GETATTR), thread, buffer, _ATTRIBUTES.size, 0))
    return _ATTRIBUTES.unpack(buffer.raw[: _ATTRIBUTES.size])


def timer_left_ns(descriptor: int) -> tuple[int, int]:
    """Of a timerfd: until it expires next (0: it is disarmed, or has expired for good), and its period (0: none)."""
    buffer = ctypes.create_string_buffer(_ITIMERSPEC.size)
    _checked(_libc.timerfd_gettime(descriptor, buffer))
    interval_s, interval_ns, value_s, value_ns = _ITIMERSPEC.unpack(buffer.raw[: _ITIMERSPEC.size])
    return value_s * _SECOND_NS + value_ns, interval_s * _SECOND_NS + interval_ns


def set_timer(descriptor: int, *, value_ns: int, interval_ns: int, flags: int, ticks: int) -> None:
    """A timerfd, with `ticks` that nobody has read yet."""
    times = _ITIMERSPEC.pack(*divmod(interval_ns, _SECOND_NS), *divmod(value_ns, _SECOND_NS))
    _checked(_libc.timerfd_settime(descriptor, flags, times, None))
    if ticks:
        fcntl.ioctl(descriptor, _SET_TICKS, ticks.to_bytes(8, "little"))


def disconnect(sock: socket.socket) -> None:
    """A connection ends as if the other end had reset it (connect(2) with AF_UNSPEC)."""
    _checked(_libc.connect(sock.fileno(), socket.AF_UNSPEC.to_bytes(2, "little") + bytes(14), 16))


def epoll_parameters(descriptor: int) -> bytes:
    """How an epoll polls network cards (struct epoll_params, Linux 6.9)."""
    return fcntl.ioctl(descriptor, _EPOLL_GET, bytes(_EPOLL_BYTES))


def set_epoll_parameters(descriptor: int, parameters: bytes) -> None:
    fcntl.ioctl(descriptor, _EPOLL_SET, parameters)
