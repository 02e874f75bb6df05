"""What of a workload would silently be another after a restore, since nobody can set it from outside: found by reading /proc.

Two kinds. What a program can notice in its results or its safety (`serious`) is a reason not to dump, unless that is allowed;
the rest is told. What can't even be seen (PR_SET_MDWE), and what each restore does by nature (processor times begin at zero), is in
docs/snapshots.md alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kybernate.model.types import HostPid
from kybernate.process.kernel_reading import threads_of
from kybernate.process.open_files import OpenFile

_LANDLOCK_CREATE_RULESET, _ASK_FOR_VERSION = 444, 1
_CAP_SYS_ADMIN = 21
_HEAD = re.compile(r"[0-9a-f]+-[0-9a-f]+ (\S{4}) [0-9a-f]+ \S+ (\d+)\s*(.*)")
_HEXADECIMAL = "0123456789abcdef"
"""An area's line begins so; its fields begin with a capital."""
_OF_THE_KERNEL = ("[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]", "[uprobes]")

_DEFAULT_POLICIES = {"default", "local"}
_ONE_LINE = 128
"""Bytes in which its policy is named."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


@dataclass(frozen=True, slots=True)
class Change:
    """One thing, as the rest of a sentence that begins with the process."""

    text: str
    serious: bool = True


@dataclass(frozen=True, slots=True)
class Area:
    """A mapping: what of /proc/PID/smaps counts here."""

    mode: str
    inode: int
    name: str
    flags: frozenset[str]


def changes(pid: HostPid, *, supervisor: HostPid, files: Iterable[OpenFile], thorough: bool = True) -> list[Change]:
    """Of one process. What the workload's supervisor has in the same way it will have again.

    Args:
        files: what it has open.
        thorough: False: leave out what has the kernel look at each page of it (some 0.1 s a GiB).
    """
    found: list[Change] = []
    with contextlib.suppress(OSError):
        status = _status(pid)
        found += of_status(status, common=_status(supervisor), landlock=_has_landlock())
        if thorough or not status.get("VmLck", "0").startswith("0"):
            found += of_mappings(parse_smaps(Path(f"/proc/{pid}/smaps").read_text(errors="replace")))
    with contextlib.suppress(OSError):
        policies = _policies(pid, thorough=thorough)
        found += of_memory_policy(policies, common=_policies(supervisor, thorough=False), nodes=_nodes())
    with contextlib.suppress(OSError):
        found += of_personality(_personality(pid), common=_personality(supervisor))
    with contextlib.suppress(OSError):
        found += of_merging(Path(f"/proc/{pid}/ksm_stat").read_text())
    for file in files:
        if file.target == "anon_inode:[eventfd]":
            with contextlib.suppress(OSError):
                found += of_eventfd(Path(f"/proc/{pid}/fdinfo/{file.number}").read_text())
    return list(dict.fromkeys(found))


def parse_smaps(text: str) -> Iterator[Area]:
    """Pure."""
    head: re.Match[str] | None = None
    for line in text.splitlines():
        if line.startswith("VmFlags:"):
            if head is not None:
                yield Area(head[1], int(head[2]), head[3], frozenset(line.split()[1:]))
        elif line[0] in _HEXADECIMAL:
            head = _HEAD.match(line)


def of_mappings(areas: Iterator[Area]) -> Iterator[Change]:
    """Pure."""
    own = [area for area in areas if area.name not in _OF_THE_KERNEL]
    if any("sl" in area.flags for area in own):
        yield Change("has sealed mappings (mseal), which would not be sealed any more")
    # Who locks single ranges does not lock the program's own code, nor its stack.
    if any("lo" in area.flags and (area.name == "[stack]" or _is_code(area)) for area in own):
        yield Change(
            "has locked all its memory (mlockall): what it has stays locked, what it asks for later (MCL_FUTURE) would not be"
        )
    if any("lf" in area.flags for area in own):
        yield Change("locks memory when it is touched (MLOCK_ONFAULT): all of it would be locked", serious=False)


def _is_code(area: Area) -> bool:
    return bool(area.inode) and "x" in area.mode and area.mode.endswith("p")


def of_memory_policy(policies: set[str], *, common: set[str], nodes: int) -> Iterator[Change]:
    """The policies that /proc/PID/numa_maps names. Pure. `nodes`: how many this machine has; with one they all mean the same."""
    if own := sorted(policies - common - _DEFAULT_POLICIES):
        yield Change(f"has a NUMA policy ({', '.join(own[:3])}), which would be the default one", serious=nodes > 1)


def _policies(pid: HostPid, *, thorough: bool) -> set[str]:
    """Also its threads' own, each of which counts for what that thread is the first to touch."""
    found = set()
    with contextlib.suppress(FileNotFoundError):  # a kernel without CONFIG_NUMA
        if thorough:
            for line in Path(f"/proc/{pid}/numa_maps").read_text(errors="replace").splitlines():
                found.add(line.split()[1])
        for thread in threads_of(pid):
            # Its beginning alone: the program's own code, for which the thread's policy stands. The kernel counts pages.
            with contextlib.suppress(ProcessLookupError), Path(f"/proc/{thread}/numa_maps").open("rb", 0) as file:
                words = file.read(_ONE_LINE).split()  # none of one that is just ending
                found.update(word.decode("ascii", "replace") for word in words[1:2])
    return found


def _nodes() -> int:
    return len(list(Path("/sys/devices/system/node").glob("node[0-9]*")))


def of_personality(flags: int, *, common: int) -> Iterator[Change]:
    """Pure."""
    if flags != common:
        yield Change(f"has another personality ({flags:#x}, of setarch(8)), which programs it starts would not have")


def _personality(pid: HostPid) -> int:
    return int(Path(f"/proc/{pid}/personality").read_text(), 16)


def of_status(status: Mapping[str, str], *, common: Mapping[str, str], landlock: bool) -> Iterator[Change]:
    """Pure. `landlock`: this kernel has it."""
    if landlock and status.get("NoNewPrivs") == "1" and common.get("NoNewPrivs") != "1":
        yield Change(
            "has set no_new_privs, as a program does before it confines itself by Landlock: whether it has can't be seen, "
            "and it would not be confined any more"
        )


def _status(pid: HostPid) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _has_landlock() -> bool:
    return bool(_libc.syscall(ctypes.c_long(_LANDLOCK_CREATE_RULESET), None, ctypes.c_size_t(0), _ASK_FOR_VERSION) > 0)


def of_merging(ksm_stat: str) -> Iterator[Change]:
    """Pure."""
    if "ksm_merge_any: yes" in ksm_stat:
        yield Change("has all its memory merged with equal pages (PR_SET_MEMORY_MERGE), which would end", serious=False)


def of_eventfd(fdinfo: str) -> Iterator[Change]:
    """Pure."""
    if re.search(r"^eventfd-semaphore:\s*1", fdinfo, re.MULTILINE):
        yield Change("has an eventfd that counts like a semaphore (EFD_SEMAPHORE), which would be an ordinary one")


def of_database(path: str) -> Change:
    """Pure. SQLite knows a file again by device and inode (`fileHasMoved`, `findInodeInfo` in its os_unix.c)."""
    return Change(
        f"has the SQLite database {path} open, which would be another file for it: in a layer or /dev/shm it gets a new "
        "inode. It could not write it any more, or connections to it would not see each other's locks"
    )
