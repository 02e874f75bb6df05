"""Reads the state of `kernel_state` from a workload that stands still. What has ended meanwhile, or what this kernel doesn't tell,
is left out."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from kybernate.model.types import HostPid
from kybernate.process import kernel_calls, procfs, socket_options
from kybernate.process.descriptor_copies import copies
from kybernate.process.kernel_state import DescriptorState, KernelState, ThreadState, TimerState
from kybernate.process.open_files import OpenFile

_TIMER, _EPOLL = "anon_inode:[timerfd]", "anon_inode:[eventpoll]"
_REALTIME_CLOCKS = (0, 8)
"""CLOCK_REALTIME and CLOCK_REALTIME_ALARM."""
_ABSOLUTE = 1


def look(
    held: Mapping[HostPid, Sequence[OpenFile]], *, supervisor: HostPid, orphans: Iterable[tuple[HostPid, int]] = ()
) -> KernelState:
    """Of processes and what they hold, beside what their supervisor has. `orphans`: connections that are to be reset."""
    common = thread_state(supervisor)
    common_filter = core_dump_filter(supervisor)
    threads: dict[int, ThreadState] = {}
    filters: dict[int, int] = {}
    descriptors: list[DescriptorState] = []
    seen: set[int] = set()
    for holder, descriptor in orphans:
        if (known := _inside(holder)) is not None:
            descriptors.append(DescriptorState(known, descriptor, orphan=True))
    for pid, files in held.items():
        inside = _inside(pid)
        if inside is None:
            continue
        for tid in threads_of(pid):
            differs = thread_state(tid).beside(common)
            if differs != ThreadState() and (number := _inside(tid)) is not None:
                threads[number] = differs
        found = core_dump_filter(pid)
        if found is not None and found != common_filter:
            filters[inside] = found
        descriptors += _descriptors(pid, inside, files, seen)
    return KernelState(threads, filters, tuple(descriptors))


def threads_of(pid: HostPid) -> list[int]:
    """Ids of its threads, in our pid namespace."""
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]  # noqa: PTH208 - the names alone
    except OSError:
        return []


def thread_state(tid: int) -> ThreadState:
    """All of it, whether it differs from anything or not."""
    processors = io_priority = slack = slice_ns = None
    with contextlib.suppress(OSError):
        processors = tuple(sorted(os.sched_getaffinity(tid)))
        io_priority = kernel_calls.io_priority(tid)
        slack = int(Path(f"/proc/{tid}/timerslack_ns").read_text())
    with contextlib.suppress(OSError):
        slice_ns = kernel_calls.slice_ns(tid)
    return ThreadState(processors, io_priority, slack, slice_ns)


def core_dump_filter(pid: HostPid) -> int | None:
    """Which mappings its core file would have; None: it has no memory."""
    try:
        return int(Path(f"/proc/{pid}/coredump_filter").read_text(), 16)
    except (OSError, ValueError):
        return None


def _inside(pid: int) -> int | None:
    numbers = procfs.namespace_pids(pid)
    return numbers[-1] if numbers else None


def _descriptors(pid: HostPid, inside: int, held: Sequence[OpenFile], seen: set[int]) -> Iterator[DescriptorState]:
    """`seen`: inodes of sockets whose options have been read."""
    files = {
        file.number: file
        for file in held
        if file.target in (_TIMER, _EPOLL) or (file.socket_inode is not None and file.socket_inode not in seen)
    }
    for number, copy in copies(pid, files):
        file = files[number]
        with contextlib.suppress(OSError):
            found = _descriptor(inside, file, copy)
            if file.socket_inode is not None:
                seen.add(file.socket_inode)
            if found is not None:
                yield found


def _descriptor(inside: int, file: OpenFile, copy: int) -> DescriptorState | None:
    if file.target == _TIMER:
        timer = _timer(file, copy)
        return None if timer is None else DescriptorState(inside, file.number, timer=timer)
    if file.target == _EPOLL:
        parameters = kernel_calls.epoll_parameters(copy)
        return DescriptorState(inside, file.number, epoll=parameters.hex()) if any(parameters) else None
    with socket.socket(fileno=os.dup(copy)) as held:
        options = socket_options.values(held)
    return DescriptorState(inside, file.number, options=options) if options else None


def _timer(file: OpenFile, copy: int) -> TimerState | None:
    """Only what is to fire at a time of the wall clock: CRIU keeps how long it still had."""
    about = dict(line.split(":", 1) for line in Path(f"/proc/{file.pid}/fdinfo/{file.number}").read_text().splitlines())
    flags = int(about["settime flags"], 8)
    left_ns, interval_ns = kernel_calls.timer_left_ns(copy)
    if int(about["clockid"]) not in _REALTIME_CLOCKS or not flags & _ABSOLUTE or not left_ns:
        return None
    return TimerState(
        deadline_ns=time.time_ns() + left_ns, interval_ns=interval_ns, flags=flags, ticks=int(about["ticks"])
    )
