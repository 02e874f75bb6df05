"""What the supervisor leaves of a workload: STATE/records/NAME.json (it lives) and exit.json (it ended); and other files' names.

Both are written whole (new name, then rename). The first says which processes may be killed and what is to be removed, so
it lies where no workload can write, one that runs as root included: in a directory that its namespaces don't show. The
second lies in the run directory; a workload of root's can forge it, and lies about its own end only. What is read from
there may be anything: a link, a pipe, garbage.
"""

from __future__ import annotations

import json
import logging
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kybernate.model.errors import KybernateError, NotFound
from kybernate.model.types import HostPid, WorkloadName

log = logging.getLogger(__name__)

RECORDS = "records"
"""Directory of the supervisors' records, below the state directory."""
EXIT = "exit.json"
_LARGEST = 1 << 20
LAUNCH = "launch.json"
"""How the workload was started, for a dump; root's, since it holds the environment."""
RESTORE = "restore"
"""Directory of CRIU's log and of the socket that it gets its images from, while a restore runs."""
IDENTITY = "identity.env"
"""What tells this life of the workload from every other: lines NAME=VALUE, which it may read when it likes."""


@dataclass(frozen=True, slots=True)
class SupervisorRecord:
    """Which process supervises a workload and what was made for it."""

    name: WorkloadName
    pid: HostPid
    start_time: int
    """Clock ticks since boot, as in /proc/PID/stat."""
    boot_id: str
    main_inside: int
    """Pid of the workload's first process as the workload sees it."""
    isolated: bool
    network: str
    cgroup: Path | None
    left_out: tuple[str, ...]
    """One line for each protection this workload has to do without."""
    run_directory_inside: Path | None = None
    """Where the workload's processes know their run directory; None: where it is."""
    layers: tuple[Path, ...] = ()
    """What the workload has written into its layers: a directory for each."""


@dataclass(frozen=True, slots=True)
class ExitRecord:
    """How a workload ended."""

    status: int
    """As a shell says it: 0 to 255, or 128 + signal."""
    signal: int | None
    time: float | None
    """Seconds since 1970; None when nobody saw it."""
    known: bool = True
    """False: the supervisor was killed, and everything with it; `status` is a guess then."""


EXIT_UNKNOWN = ExitRecord(status=137, signal=9, time=None, known=False)


def supervisor_path(run_directory: Path) -> Path:
    return run_directory.parents[1] / RECORDS / f"{run_directory.name}.json"


def read_supervisor(run_directory: Path) -> SupervisorRecord:
    """Raises NotFound: no workload was launched there. Raises KybernateError: the file is damaged."""
    path = supervisor_path(run_directory)
    try:
        raw = _read(path)
        if raw.get("name") != run_directory.name:
            raise _damaged(path, raw.get("name"))
    except FileNotFoundError as e:
        raise NotFound(f"no workload was launched in {run_directory}") from e
    try:
        return SupervisorRecord(
            name=WorkloadName(str(raw["name"])),
            pid=HostPid(int(raw["pid"])),
            start_time=int(raw["start_time"]),
            boot_id=str(raw["boot_id"]),
            main_inside=int(raw["main_inside"]),
            isolated=bool(raw["isolated"]),
            network=str(raw["network"]),
            cgroup=None if raw["cgroup"] is None else Path(raw["cgroup"]),
            left_out=tuple(str(line) for line in raw["left_out"]),
            run_directory_inside=Path(raw["run_directory_inside"]) if raw.get("run_directory_inside") else None,
            layers=tuple(Path(layer) for layer in raw.get("layers", ())),
        )
    except (KeyError, TypeError, ValueError) as e:
        raise _damaged(path, e) from e


def read_exit(run_directory: Path) -> ExitRecord | None:
    """None while there is none that makes sense: the workload may have put anything there."""
    try:
        raw = _read(run_directory / EXIT)
        number = raw["signal"]
        return ExitRecord(
            status=int(raw["status"]) & 0xFF,
            signal=None if number is None else int(number),
            time=float(raw["time"]),
        )
    except FileNotFoundError:
        return None
    except (KybernateError, KeyError, TypeError, ValueError, OverflowError) as e:
        log.warning("%s tells nothing: %s", run_directory / EXIT, e)
        return None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_content(path))
    except (ValueError, RecursionError) as e:
        raise _damaged(path, e) from e
    if not isinstance(content, dict):
        raise _damaged(path, content)
    return content


def _content(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as e:
        raise _damaged(path, e.strerror) from e
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _damaged(path, "no regular file")
        return os.pread(descriptor, _LARGEST, 0)
    finally:
        os.close(descriptor)


def _damaged(path: Path, detail: object) -> KybernateError:
    return KybernateError(f"{path} is damaged: {detail!r:.80}", hint="remove the workload's directory to forget it")
