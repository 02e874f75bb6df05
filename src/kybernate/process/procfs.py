"""What /proc says about a process. All pids and times are as this process's own pid namespace sees them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kybernate.model.types import HostPid

PF_EXITING = 0x4


@dataclass(frozen=True, slots=True)
class Stat:
    """The fields of /proc/PID/stat we use."""

    name: str
    state: str
    """One letter: R running, S sleeping, D waiting uninterruptibly, T stopped, t traced, Z zombie, X dead."""
    parent: int
    group: int
    session: int
    start_time: int
    """Clock ticks since boot; with the pid it names one process for good."""
    flags: int
    """The kernel's own, PF_*."""

    @property
    def alive(self) -> bool:
        return self.state not in "ZX"

    @property
    def ending(self) -> bool:
        """It has ended, or is past the point from which it will; its descriptors may be closed already."""
        return not self.alive or bool(self.flags & PF_EXITING)


def stat(pid: int) -> Stat | None:
    """None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes().decode("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name may hold blanks and parentheses; it ends at the last one.
    head, _, rest = text.rpartition(")")
    fields = rest.split()
    return Stat(
        name=head.partition("(")[2],
        state=fields[0],
        parent=int(fields[1]),
        group=int(fields[2]),
        session=int(fields[3]),
        start_time=int(fields[19]),
        flags=int(fields[6]),
    )


def namespace_pids(pid: int) -> tuple[int, ...]:
    """The process's pid in each pid namespace from ours inwards; empty when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ()
    for line in text.splitlines():
        if line.startswith("NSpid:"):
            return tuple(int(number) for number in line.split()[1:])
    return (pid,)


def catches(pid: int, number: int) -> bool:
    """Whether the process has a handler for this signal."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    masks = [line.split()[1] for line in text.splitlines() if line.startswith("SigCgt:")]
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)


def own_bytes(pid: int) -> int:
    """Of memory that it has in RAM and that no file has: anonymous and shared memory. 0 where there is no such process."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith(("RssAnon:", "RssShmem:")))


def command(pid: int) -> str:
    """The command line with blanks between the words, at most 200 characters; the name of a process without one."""
    try:
        text = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    found = None if text else stat(pid)
    return text[:200] if found is None else f"[{found.name}]"


def all_pids() -> list[HostPid]:
    """Every process there is right now, in ascending order."""
    return sorted(HostPid(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def boot_id() -> str:
    """Changes with every boot; pids and start times mean nothing beyond it."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
