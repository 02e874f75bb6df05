"""Sets the state of `kernel_state` again, while CRIU still holds every restored process and none of them has run.

Run in a child of the supervisor.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from kybernate.model.types import HostPid
from kybernate.process import kernel_calls, kernel_state, socket_options
from kybernate.process.descriptor_copies import copies
from kybernate.process.kernel_state import DescriptorState, KernelState, ThreadState

NOTES = "kernel.notes"
"""What could not be set, in a line each, in the directory of CRIU's log."""


def run(images: int, work: int) -> None:
    """Set what the dump in the directory `images` says; what could not be set goes into NOTES in the directory `work`.

    Both are descriptors. A workload that has come back is worth more than its I/O priority: so nothing here ends a restore.
    """
    try:
        failed = set_again(kernel_state.read(Path(f"/proc/self/fd/{images}")))
    except Exception as e:  # numbers that no call takes, for example: whatever it is, it is said
        failed = [f"what the kernel knew of it: {e}"]
    Path(f"/proc/self/fd/{work}/{NOTES}").write_text("".join(f"{line}\n" for line in failed))


def notes(work: Path) -> tuple[str, ...]:
    """What `run` left."""
    try:
        return tuple((work / NOTES).read_text().splitlines())
    except OSError:
        return ()


def set_again(state: KernelState) -> list[str]:
    """For processes of our own pid namespace. Returns a line for each thing that could not be set."""
    failed: list[str] = []
    for tid, thread in state.threads.items():
        failed += [f"thread {tid}: {what}" for what in _thread(tid, thread)]
    for pid, bits in state.core_dump_filters.items():
        try:
            Path(f"/proc/{pid}/coredump_filter").write_text(hex(bits))
        except OSError as e:
            failed.append(f"process {pid}: its filter of core dumps ({e.strerror})")
    by_pid: dict[int, dict[int, list[DescriptorState]]] = {}
    for descriptor in state.descriptors:
        by_pid.setdefault(descriptor.pid, {}).setdefault(descriptor.number, []).append(descriptor)
    for pid, wanted in by_pid.items():
        done = set()
        for number, copy in copies(HostPid(pid), wanted):
            done.add(number)
            for descriptor in wanted[number]:
                failed += [f"process {pid}, descriptor {number}: {what}" for what in _descriptor(copy, descriptor)]
        failed += [f"process {pid}, descriptor {number}: can't be reached" for number in wanted if number not in done]
    return failed


def _thread(tid: int, thread: ThreadState) -> Iterator[str]:
    if thread.processors is not None and (lacking := _run_on(tid, thread.processors)):
        yield lacking
    try:
        if thread.io_priority is not None:
            kernel_calls.set_io_priority(tid, thread.io_priority)
    except OSError as e:
        yield f"its I/O priority {thread.io_priority} ({e.strerror})"
    try:
        if thread.timer_slack_ns is not None:
            Path(f"/proc/{tid}/timerslack_ns").write_text(str(thread.timer_slack_ns))
    except OSError as e:
        yield f"its timer slack of {thread.timer_slack_ns} ns ({e.strerror})"
    try:
        if thread.slice_ns is not None:
            kernel_calls.set_slice_ns(tid, thread.slice_ns)
    except OSError as e:
        yield f"its time slice of {thread.slice_ns} ns ({e.strerror})"


def _run_on(tid: int, processors: tuple[int, ...]) -> str | None:
    """Those of them that are here; else it runs where the workload's processes may."""
    try:
        os.sched_setaffinity(tid, processors)
        there = os.sched_getaffinity(tid)
    except OSError:
        return f"it ran on processors {_numbers(processors)}, of which none can be used here"
    if missing := sorted(set(processors) - there):
        return f"it may run on fewer processors than before: {_numbers(missing)} can't be used here"
    return None


def _numbers(processors: tuple[int, ...] | list[int]) -> str:
    return ", ".join(map(str, processors[:8])) + (", ..." if len(processors) > 8 else "")


def _reset(copy: int) -> None:
    """Whoever waits for an answer on it gets ECONNRESET."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(copy)) as held:
        kernel_calls.disconnect(held)


def _descriptor(copy: int, wanted: DescriptorState) -> Iterator[str]:
    if wanted.options:
        try:
            with socket.socket(fileno=os.dup(copy)) as held:
                yield from socket_options.apply(held, wanted.options)
        except OSError as e:
            yield f"is no socket ({e.strerror})"
    if wanted.orphan:
        _reset(copy)
    try:
        if (timer := wanted.timer) is not None:
            kernel_calls.set_timer(
                copy, value_ns=timer.deadline_ns, interval_ns=timer.interval_ns, flags=timer.flags, ticks=timer.ticks
            )
        if wanted.epoll is not None:
            kernel_calls.set_epoll_parameters(copy, bytes.fromhex(wanted.epoll))
    except OSError as e:
        yield f"its timer or its polling of network cards ({e.strerror})"
