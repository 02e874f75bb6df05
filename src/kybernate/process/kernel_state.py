"""What Linux keeps of a workload's threads, processes and descriptors that CRIU (4.2) leaves out: read at the dump, set again at
the restore, before anything runs. docs/snapshots.md has the whole list, with what is named instead (`changes.py`).

The record, kernel.json in the dump's directory, holds only what differs from what a workload starts with, that is, from its
supervisor's: so a workload that never chose its processors gets those of the machine it comes back on. Pids are the workload's
own. A dump without the file (of an earlier Kybernate) has nothing to set.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kybernate.model.errors import BadInput

RECORD = "kernel.json"
VERSION = 1


@dataclass(frozen=True, slots=True)
class ThreadState:
    """Of one thread. None: as its workload's supervisor has it."""

    processors: tuple[int, ...] | None = None
    """On which it may run."""
    io_priority: int | None = None
    """As ioprio_set(2) takes it."""
    timer_slack_ns: int | None = None
    slice_ns: int | None = None
    """Of processor time that it asked the scheduler for (sched_attr.sched_runtime of a fair policy)."""

    def beside(self, common: ThreadState) -> ThreadState:
        """What of it differs. Pure."""
        return ThreadState(
            processors=None if self.processors == common.processors else self.processors,
            io_priority=None if self.io_priority == common.io_priority else self.io_priority,
            timer_slack_ns=None if self.timer_slack_ns == common.timer_slack_ns else self.timer_slack_ns,
            slice_ns=None if self.slice_ns == common.slice_ns else self.slice_ns,
        )


@dataclass(frozen=True, slots=True)
class TimerState:
    """A timerfd that is to fire at a time of the wall clock."""

    deadline_ns: int
    """Since 1970."""
    interval_ns: int
    flags: int
    """Of timerfd_settime(2)."""
    ticks: int
    """That nobody had read."""


@dataclass(frozen=True, slots=True)
class DescriptorState:
    """Of one open file, by one of the descriptors that lead to it."""

    pid: int
    number: int
    options: Mapping[str, int | str] = field(default_factory=dict)
    """Of a socket, by name."""
    timer: TimerState | None = None
    epoll: str | None = None
    """Of an epoll: its struct epoll_params, in hexadecimal."""
    orphan: bool = False
    """A connection whose other end nobody had accepted, and which is nowhere any more."""


@dataclass(frozen=True, slots=True)
class KernelState:
    """All of it."""

    threads: Mapping[int, ThreadState] = field(default_factory=dict)
    """By their id."""
    core_dump_filters: Mapping[int, int] = field(default_factory=dict)
    """By pid."""
    descriptors: tuple[DescriptorState, ...] = ()

    def text(self) -> str:
        """JSON, without what is None."""
        return json.dumps({"version": VERSION} | _stripped(asdict(self)), indent=1) + "\n"


def _stripped(value: Any) -> Any:
    match value:
        case dict():
            return {key: _stripped(part) for key, part in value.items() if part is not None}
        case list() | tuple():
            return [_stripped(part) for part in value]
    return value


def write(directory: Path, state: KernelState) -> None:
    """Into a dump's directory, for root only."""
    path = directory / RECORD
    path.touch(mode=0o600, exist_ok=False)
    path.write_text(state.text())


def read(directory: Path) -> KernelState:
    """Of a dump.

    Raises:
        BadInput: it is damaged, or of a newer version.
    """
    path = directory / RECORD
    try:
        raw = json.loads(path.read_bytes())
    except FileNotFoundError:
        return KernelState()
    except (ValueError, RecursionError) as e:
        raise BadInput(f"{path} is damaged: {e}") from e
    try:
        if raw["version"] != VERSION:
            raise BadInput(f"{path} is of version {raw['version']}, this Kybernate reads {VERSION}")
        return parse(raw)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as e:
        raise BadInput(f"{path} is damaged: {e!r}") from e


def parse(raw: Mapping[str, Any]) -> KernelState:
    """From JSON. Pure. Raises KeyError, TypeError, ValueError or AttributeError where that is damaged."""
    return KernelState(
        threads={int(tid): _thread(thread) for tid, thread in raw["threads"].items()},
        core_dump_filters={int(pid): int(bits) for pid, bits in raw["core_dump_filters"].items()},
        descriptors=tuple(_descriptor(descriptor) for descriptor in raw["descriptors"]),
    )


def _thread(raw: Mapping[str, Any]) -> ThreadState:
    processors = raw.get("processors")
    return ThreadState(
        processors=None if processors is None else tuple(int(number) for number in processors),
        io_priority=_number(raw.get("io_priority")),
        timer_slack_ns=_number(raw.get("timer_slack_ns")),
        slice_ns=_number(raw.get("slice_ns")),
    )


def _descriptor(raw: Mapping[str, Any]) -> DescriptorState:
    timer, epoll = raw.get("timer"), raw.get("epoll")
    return DescriptorState(
        pid=int(raw["pid"]),
        number=int(raw["number"]),
        options={str(name): value if isinstance(value, str) else int(value) for name, value in raw["options"].items()},
        timer=None if timer is None else TimerState(**{name: int(timer[name]) for name in TimerState.__slots__}),
        epoll=None if epoll is None else bytes.fromhex(epoll).hex(),
        orphan=bool(raw.get("orphan")),
    )


def _number(value: Any) -> int | None:
    return None if value is None else int(value)
