"""System calls that a freeze or CRIU would end early, as if a signal had come: they go on instead, wherever Linux lets them.

A frozen thread stands at the end of its call. epoll_wait(2), sigtimedwait(2) and semop(2) answer EINTR then, without any handler.
nanosleep(2) and poll(2) would go on, by a block that the kernel keeps; but CRIU ends them with EINTR, in the image and in the
workload that runs on. What the call answers stands in the thread's registers, and ERESTARTNOHAND there means: call again, unless
a signal has a handler. Kernel and CRIU both do that.

Exact are calls without a timeout, and sleeps whose caller asked for the time left. Other sleeps, and poll with a timeout, begin
their whole time anew after a dump: late is what every sleep may be, early is not. Timeouts of epoll_wait end early as ever: whoever
has one computes it again. Linux's list is in signal(7).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from kybernate.model.types import HostPid

_POLL, _NANOSLEEP, _CLOCK_NANOSLEEP, _SIGTIMEDWAIT = 7, 35, 230, 128
_EPOLL_WAIT, _EPOLL_PWAIT, _EPOLL_PWAIT2 = 232, 281, 441
_SEMOP, _SEMTIMEDOP = 65, 220
_ENDED_BY_A_FREEZE = frozenset({_SIGTIMEDWAIT, _EPOLL_WAIT, _EPOLL_PWAIT, _EPOLL_PWAIT2, _SEMOP, _SEMTIMEDOP})
_KNOWN = _ENDED_BY_A_FREEZE | {_POLL, _NANOSLEEP, _CLOCK_NANOSLEEP}
EINTR, CALL_AGAIN, GO_ON = -4, -514, -516
"""EINTR, ERESTARTNOHAND and ERESTART_RESTARTBLOCK, as the kernel has them in a register."""
_ABSOLUTE = 1
"""TIMER_ABSTIME."""

_SEIZE, _INTERRUPT, _GETREGS, _SETREGS, _DETACH = 0x4206, 0x4207, 12, 13, 17
_WALL = 0x40000000
_EVENT_STOP = 128
_REGISTERS = struct.Struct("=27Q")
"""struct user_regs_struct of x86-64."""
_R10, _AX, _DX, _SI, _DI, _ORIG_AX, _CS = 7, 10, 12, 13, 14, 15, 17
_CODE_64 = 0x33
_STOP_S, _POLL_S, _SPINS = 1.0, 0.0002, 200
"""It stops within some ten microseconds."""
_LINE_BYTES = 256

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long


@dataclass(frozen=True, slots=True)
class Call:
    """A system call at its end: what it answers, its number, and its first four arguments."""

    answer: int
    number: int
    first: int
    second: int
    third: int
    fourth: int


def going_on(call: Call, *, for_dump: bool, signalled: bool) -> Call | None:
    """The call as it is to end, so that it goes on; None: as it stands. Pure.

    Args:
        for_dump: CRIU comes next.
        signalled: a signal is pending that the thread takes when it runs.
    """
    if call.number not in _KNOWN:
        return None
    if signalled:
        # CRIU would call again without a look at the signal, whose handler is what the caller waits for.
        ours = for_dump and call.answer == CALL_AGAIN and call.number in _ENDED_BY_A_FREEZE
        return replace(call, answer=EINTR) if ours else None
    if call.answer == EINTR and _waits_for_ever(call):
        return replace(call, answer=CALL_AGAIN)
    if call.answer != GO_ON or not for_dump:
        return None
    if call.number == _NANOSLEEP:
        return replace(call, answer=CALL_AGAIN, first=call.second or call.first)
    if call.number == _CLOCK_NANOSLEEP:
        return replace(call, answer=CALL_AGAIN, third=call.fourth or call.third)
    return replace(call, answer=CALL_AGAIN) if call.number == _POLL else None


def _waits_for_ever(call: Call) -> bool:
    match call.number:
        case n if n in (_EPOLL_WAIT, _EPOLL_PWAIT):
            return bool(call.fourth & 1 << 31)  # an int
        case n if n == _SEMOP:
            return True
        case n if n in (_EPOLL_PWAIT2, _SEMTIMEDOP):
            return call.fourth == 0
        case n if n == _SIGTIMEDWAIT:
            return call.third == 0
    return False


@dataclass(frozen=True, slots=True)
class Changed:
    """A thread whose registers were changed."""

    thread: int
    leads: bool
    """It is its process's first; CRIU runs in its name, and the kernel's block for its call is gone then."""
    before: bytes
    """Its registers."""


def let_go_on(pids: Iterable[HostPid], *, for_dump: bool = False) -> list[Changed]:
    """Of frozen processes. What can't be traced, or is no x86-64 program, is left as it is."""
    changed = []
    for pid in pids:
        with contextlib.suppress(OSError):
            for thread in map(int, os.listdir(f"/proc/{pid}/task")):  # noqa: PTH208 - the names alone
                standing = _standing(thread)
                if standing is None or not _may_change(standing, for_dump=for_dump):
                    continue
                with contextlib.suppress(OSError):
                    before = _change(thread, for_dump=for_dump)
                    if before is not None:
                        changed.append(Changed(thread, thread == pid, before))
    return changed


def take_back(changed: Iterable[Changed]) -> None:
    """After a dump, in the workload that runs on: the kernel knows best when a sleep ends. Processes are frozen."""
    for each in changed:
        call = _call(_REGISTERS.unpack(each.before))
        if not each.leads and call.answer == GO_ON:
            with contextlib.suppress(OSError), _Stopped(each.thread) as stopped:
                stopped.write(each.before)


def _standing(thread: int) -> Call | None:
    """The call in which it stands, without its answer, which only a tracer sees; None: in none."""
    descriptor = os.open(f"/proc/{thread}/syscall", os.O_RDONLY | os.O_CLOEXEC)
    try:
        words = os.read(descriptor, _LINE_BYTES).split()
    finally:
        os.close(descriptor)
    if len(words) < 5 or not words[0].isdigit():
        return None
    first, second, third, fourth = (int(word, 16) for word in words[1:5])
    return Call(EINTR, int(words[0]), first, second, third, fourth)


def _may_change(call: Call, *, for_dump: bool) -> bool:
    """Worth a look: to stop a thread takes longer than to read where it stands."""
    return call.number in _KNOWN and (_waits_for_ever(call) or (for_dump and call.number not in _ENDED_BY_A_FREEZE))


def _change(thread: int, *, for_dump: bool) -> bytes | None:
    """Returns the registers as they were, if they were changed."""
    with _Stopped(thread) as stopped:
        before = stopped.read()
        registers = list(_REGISTERS.unpack(before))
        if registers[_CS] != _CODE_64:
            return None
        call = going_on(_call(registers), for_dump=for_dump, signalled=_signalled(thread))
        if call is None:
            return None
        registers[_AX] = call.answer & (1 << 64) - 1
        registers[_DI], registers[_DX] = call.first, call.third
        stopped.write(_REGISTERS.pack(*registers))
    return before


def _call(registers: tuple[int, ...] | list[int]) -> Call:
    answer = registers[_AX]
    return Call(
        answer=answer - (1 << 64) if answer >> 63 else answer,
        number=registers[_ORIG_AX],
        first=registers[_DI],
        second=registers[_SI],
        third=registers[_DX],
        fourth=registers[_R10],
    )


def _signalled(thread: int) -> bool:
    masks = {}
    for line in Path(f"/proc/{thread}/status").read_text(errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name in ("SigPnd", "ShdPnd", "SigBlk"):
            masks[name] = int(value, 16)
    return bool((masks["SigPnd"] | masks["ShdPnd"]) & ~masks["SigBlk"])


class _Stopped:
    """A frozen thread, held by ptrace(2) for the block; afterwards it is frozen as before. Raises OSError."""

    def __init__(self, thread: int) -> None:
        self._thread = thread
        self._signal = 0

    def __enter__(self) -> Self:
        _ptrace(_SEIZE, self._thread)
        try:
            _ptrace(_INTERRUPT, self._thread)
            self._wait()
        except BaseException:
            self._detach()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._detach()

    def _wait(self) -> None:
        until, tries = time.monotonic() + _STOP_S, 0
        while time.monotonic() < until:
            found, status = os.waitpid(self._thread, _WALL | os.WNOHANG)
            if found:
                if os.WIFSTOPPED(status) and status >> 16 != _EVENT_STOP and os.WSTOPSIG(status) != signal.SIGTRAP:
                    self._signal = os.WSTOPSIG(status)  # of its own, which it gets
                return
            if (tries := tries + 1) > _SPINS:
                time.sleep(_POLL_S)
            else:
                os.sched_yield()
        raise TimeoutError(f"thread {self._thread} doesn't stop")

    def _detach(self) -> None:
        with contextlib.suppress(OSError):
            _ptrace(_DETACH, self._thread, self._signal)

    def read(self) -> bytes:
        buffer = ctypes.create_string_buffer(_REGISTERS.size)
        _ptrace(_GETREGS, self._thread, ctypes.addressof(buffer))
        return buffer.raw[: _REGISTERS.size]

    def write(self, registers: bytes) -> None:
        buffer = ctypes.create_string_buffer(registers, _REGISTERS.size)
        _ptrace(_SETREGS, self._thread, ctypes.addressof(buffer))


def _ptrace(request: int, thread: int, data: int = 0) -> None:
    if _libc.ptrace(ctypes.c_long(request), ctypes.c_long(thread), None, ctypes.c_void_p(data)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
