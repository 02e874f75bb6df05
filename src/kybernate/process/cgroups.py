"""Control groups of version 2, by plain files: who belongs to a workload, freeze, thaw and kill all of them at once.

    ROOT/kybernate-<hash of the state directory>/<workload>/supervisor     never frozen
    ROOT/kybernate-<hash of the state directory>/<workload>/tasks          the workload's processes

ROOT is where a cgroup2 hierarchy is mounted: /sys/fs/cgroup, or /sys/fs/cgroup/unified beside controllers of
version 1. Where the top of it may not be written (a delegated subtree), it is the agent's own cgroup. No
controllers are enabled: freezing, killing and counting need none.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import select
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from kybernate.model.errors import Busy, KybernateError, Unsupported
from kybernate.model.types import HostPid, WorkloadName
from kybernate.process import procfs

_GROUP = "kybernate-"
_BIRTH_S = 0.002
"""What a vfork()ed child gets to run its program, which wakes its parent."""
_BIRTHS_S = 1.0
"""After so long it is left as it stands: a child may take its time."""
_VFORK = frozenset({"kernel_clone", "wait_for_vfork_done", "_do_fork"})
"""Where the kernel says that the parent sleeps, by version."""
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)


def roots(*, mounts: str, own: str) -> list[tuple[Path, Path]]:
    """Where a cgroup may be made, best first, as (mount point, directory), from the text of two files. A hierarchy that is
    mounted more than once counts once.

    Args:
        mounts: /proc/self/mountinfo.
        own: /proc/self/cgroup.
    """
    points = list(_hierarchies(mounts))
    own_paths = [line[3:] for line in own.splitlines() if line.startswith("0::/")]
    found = [(point, point) for point in points]
    # "/.." at its beginning: the agent's cgroup lies outside of what is mounted here.
    found += [(point, point / path[1:]) for point in points for path in own_paths if path != "/" and ".." not in path]
    return found


def _hierarchies(mounts: str) -> Iterable[Path]:
    """One mount point of each: a writable one, if there is any."""
    found: dict[tuple[str, str], tuple[bool, Path]] = {}
    for point, hierarchy, writable in _mounted(mounts):
        before = found.get(hierarchy)
        if before is None or (writable and not before[0]):
            found[hierarchy] = (writable, point)
    return [point for _, point in found.values()]


def _mounted(mounts: str) -> Iterator[tuple[Path, tuple[str, str], bool]]:
    """Each mount of version 2: its point, which directory of which hierarchy is seen there, whether it may be written."""
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        if right.startswith("cgroup2 "):
            _, _, device, root, point, options, *_ = left.split(" ")
            yield Path(point), (device, root), "ro" not in options.split(",")


def cgroup_mounts() -> list[Path]:
    """Everywhere that a hierarchy of version 2 is mounted and can be reached: nothing else is mounted over it."""
    mounts = Path("/proc/self/mountinfo").read_text()
    uppermost = {Path(line.split(" ")[4]): " - cgroup2 " in line for line in mounts.splitlines()}
    return [point for point, there in uppermost.items() if there and point.is_mount()]


def group_name(state_directory: Path) -> str:
    """The directory that holds the cgroups of all workloads of one state directory."""
    digest = hashlib.sha256(os.fsencode(state_directory)).hexdigest()[:10]
    return _GROUP + digest


def _in_vfork(pids: list[HostPid]) -> bool:
    """Whether a thread of one of them waits for its vfork()ed child."""
    parents = {entry.parent for pid in pids if (entry := procfs.stat(pid)) is not None}
    for pid in parents.intersection(pids):
        with contextlib.suppress(OSError):
            if any((task / "wchan").read_text() in _VFORK for task in Path(f"/proc/{pid}/task").iterdir()):
                return True
    return False


def _candidates() -> list[tuple[Path, Path]]:
    mounts, own = Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text()
    return roots(mounts=mounts, own=own)


class WorkloadCgroup:
    """The cgroup of one workload. `mount_point` is the root of its hierarchy. Holds no descriptors."""

    freezes_by = "cgroup"

    def __init__(self, path: Path) -> None:
        if not path.parent.name.startswith(_GROUP) or path.name == "..":
            raise ValueError(f"{path} is no workload's cgroup")  # everything in it may be killed
        self.path = path
        self.supervisor = path / "supervisor"
        self.tasks = path / "tasks"

    @classmethod
    def create(cls, *, state_directory: Path, name: WorkloadName) -> WorkloadCgroup:
        """Make it. FileExistsError: there is one of that name already.

        Raises:
            Unsupported: no cgroup2 hierarchy that may be written.
        """
        refusals = []
        for _, directory in _candidates():
            group = cls(directory / group_name(state_directory) / name)
            try:
                group._make()
            except FileExistsError:
                raise
            except OSError as e:
                if e.errno not in _FORBIDDEN and e.errno != errno.ENOENT:
                    raise
                refusals.append(f"{directory}: {e.strerror}")
            else:
                return group
        raise Unsupported(
            "no writable cgroup v2 hierarchy" + (f" ({', '.join(refusals)})" if refusals else ""),
            hint="mount one with: mount -t cgroup2 none /sys/fs/cgroup/unified; or launch without isolation",
        )

    @classmethod
    def existing(cls, *, state_directory: Path, name: WorkloadName) -> list[WorkloadCgroup]:
        """Where an earlier launch of that name may have left something, be it the directory above."""
        places = dict.fromkeys(directory / group_name(state_directory) / name for _, directory in _candidates())
        return [cls(place) for place in places if place.parent.is_dir()]

    def _make(self) -> None:
        for _ in range(3):
            self.path.parent.mkdir(exist_ok=True)
            try:
                self.path.mkdir()
            except FileNotFoundError:
                continue  # another workload's removal took the parent away in between
            self.supervisor.mkdir()
            self.tasks.mkdir()
            return
        raise KybernateError(f"can't make the cgroup {self.path}: its parent keeps vanishing")

    @property
    def mount_point(self) -> Path:
        """The mount it lies in."""
        return max((point for point, _ in _candidates() if self.path.is_relative_to(point)), key=lambda p: len(p.parts))

    @property
    def exists(self) -> bool:
        return self.path.is_dir()

    def pids(self) -> list[HostPid]:
        """The workload's processes, without the supervisor and without zombies."""
        return _pids_below(self.tasks)

    def helper_pids(self) -> list[HostPid]:
        """The supervisor, and whoever works beside it."""
        return _pids_below(self.supervisor)

    @property
    def frozen(self) -> bool:
        """Whether every process of the workload stands still."""
        return _event(self.tasks, "frozen") == 1

    def freeze(self, timeout_s: float) -> None:
        """Stop all of the workload's processes at once.

        Not in the middle of a vfork(), if there is a moment without one: the parent of a child that stands still there can't be
        caught by a debugger or CRIU, which waits for it in vain.

        Raises:
            Busy: not all of them stood still in time; they were let go again.
        """
        until = time.monotonic() + min(timeout_s, _BIRTHS_S)
        _write(self.tasks / "cgroup.freeze", "1")
        while _wait_event(self.tasks, "frozen", 1, timeout_s):
            if not _in_vfork(self.pids()) or time.monotonic() > until:
                return
            self.thaw()
            time.sleep(_BIRTH_S)
            _write(self.tasks / "cgroup.freeze", "1")
        moving = ", ".join(_not_freezable(self.pids())) or "none of them seems busy"
        self.thaw()
        raise Busy(
            f"workload {self.path.name} did not freeze within {timeout_s:g} s: {moving}",
            hint="a process waits in the kernel, often for a file system; try again later",
        )

    def thaw(self) -> None:
        _write(self.tasks / "cgroup.freeze", "0")

    def kill(self) -> None:
        """SIGKILL to every process of the workload, frozen ones too. The supervisor lives and says how it ended."""
        _kill(self.tasks)

    def remove(self, timeout_s: float) -> None:
        """Kill whatever is in it, the supervisor too, and remove it. Does nothing when it is gone.

        Raises:
            Busy: a process could not be killed in time.
        """
        if self.exists:
            self._remove_own(timeout_s)
        with contextlib.suppress(OSError):  # other workloads are in it
            self.path.parent.rmdir()

    def _remove_own(self, timeout_s: float) -> None:
        _kill(self.path)
        if not _wait_event(self.path, "populated", 0, timeout_s):
            raise Busy(
                f"workload {self.path.name} still has processes after SIGKILL: {_pids_below(self.path)}",
                hint="they wait in the kernel; try again later",
            )
        for directory in (*_below(self.path), self.path):
            _remove_directory(directory, timeout_s)


def _below(directory: Path) -> Iterator[Path]:
    """All cgroups below, deepest first."""
    for base, names, _ in os.walk(directory, topdown=False):
        yield from (Path(base, name) for name in names)


def _pids_below(directory: Path) -> list[HostPid]:
    pids: set[int] = set()
    for group in (*_below(directory), directory):
        with contextlib.suppress(FileNotFoundError, OSError):
            pids.update(int(line) for line in (group / "cgroup.procs").read_text().split())
    pids.discard(0)  # what the kernel shows for a process of a foreign pid namespace
    return sorted(HostPid(pid) for pid in pids)


def _remove_directory(directory: Path, timeout_s: float) -> None:
    """A cgroup whose last process has just ended may answer EBUSY for an instant."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            directory.rmdir()
        except FileNotFoundError:
            return
        except OSError as e:
            if e.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.002)
        else:
            return


def _kill(directory: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if (directory / "cgroup.kill").exists():
            _write(directory / "cgroup.kill", "1")
            return
        while pids := _pids_below(directory):  # before Linux 5.14; ends because the dead can't fork
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.002)


def _write(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _event(directory: Path, key: str) -> int | None:
    """One value of cgroup.events; None when the cgroup is gone."""
    try:
        return _parse_event((directory / "cgroup.events").read_text(), key)
    except (FileNotFoundError, OSError):
        return None


def _parse_event(text: str, key: str) -> int | None:
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return None


def _wait_event(directory: Path, key: str, wanted: int, timeout_s: float) -> bool:
    """Sleep in the kernel until cgroup.events says so; False when the time is over."""
    deadline = time.monotonic() + timeout_s
    with (directory / "cgroup.events").open() as file:
        poller = select.poll()
        poller.register(file, select.POLLPRI)
        while True:
            # Reading arms the next notification, so nothing between a reading and poll is missed.
            file.seek(0)
            if _parse_event(file.read(), key) == wanted:
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            poller.poll(max(1, int(left * 1000)))


def _not_freezable(pids: list[HostPid]) -> Iterator[str]:
    """Processes with a thread in an uninterruptible wait: those hold a freezing up."""
    for pid in pids:
        with contextlib.suppress(OSError):
            threads = [int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir()]
            for thread in threads:
                found = procfs.stat(thread)
                if found is not None and found.state == "D":
                    yield f"process {pid} ({found.name}) waits uninterruptibly"
                    break
