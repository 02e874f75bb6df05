"""The small program that dumps a workload: it survives the agent, and leaves the workload as it was.

`dumping.dump` starts it with a job (JSON, one line on stdin). It moves into the workload's supervisor cgroup, so that
neither the agent's end nor a kill of the agent's whole cgroup takes it along; freezes the workload and holds back its
packets; runs CRIU in the workload's namespaces; and while CRIU waits at its end, with everything still standing, saves the
files. Then it prints one JSON object and ends:

    status         0, or why not: `error` and `busy` then say more, or CRIU's log does
    frozen_s, criu_s, needs, shared, processes, notes

When the agent is gone by then (its end of stdin is closed), nobody wants the dump: it is deleted, and a workload that
ran runs on. `dumping.settle` does the same where this program was killed too.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from kybernate.model.errors import Busy
from kybernate.model.types import HostPid
from kybernate.process import (
    archives,
    criu_commands,
    criu_repair,
    criu_timers,
    image_stream,
    images,
    in_flight,
    kernel_reading,
    kernel_state,
    namespaces,
    needs,
    network_lock,
    procfs,
    sharing,
    sleeping_calls,
    sysvipc,
)
from kybernate.process.cgroups import WorkloadCgroup
from kybernate.process.open_files import open_files
from kybernate.process.stations import Stations

_NAMESPACES = (
    namespaces.NEW_MOUNTS | namespaces.NEW_PIDS | namespaces.NEW_IPC | namespaces.NEW_UTS | namespaces.NEW_NETWORK
)
_HARMLESS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> NoReturn:
    """Read the job, dump, report. The exit status is 0 whenever there is a report."""
    # The agent's terminal or a careless kill of its group must not cut a dump in two.
    for number in _HARMLESS:
        signal.signal(number, signal.SIG_IGN)
    job = json.loads(sys.stdin.readline())
    group = WorkloadCgroup(Path(job["cgroup"]))
    (group.supervisor / "cgroup.procs").write_text("0")
    with contextlib.suppress(OSError):  # needs CAP_SYS_RESOURCE: of all processes, not CRIU when memory runs out
        Path("/proc/self/oom_score_adj").write_text("-900")
    report: dict[str, Any] = {}
    try:
        began = time.monotonic()
        group.freeze(job["freeze_timeout_s"])
        with contextlib.closing(network_lock.hold(group.tasks)) if job["hold_back"] else contextlib.nullcontext():
            held = {pid: list(open_files(pid)) for pid in group.pids()}
            criu_timers.count_expirations(held)
            supervisor = HostPid(job["supervisor_pid"])
            dropped = in_flight.look(held)
            known = kernel_reading.look(held, supervisor=supervisor, orphans=dropped.waiting_clients)
            kernel_state.write(Path(job["images"]), known)
            report["notes"] = dropped.notes
            sleeping = sleeping_calls.let_go_on(group.pids(), for_dump=True)
            report |= _dump(job)
            sleeping_calls.take_back(sleeping)
    except Exception as e:  # a process of its own: the other side must hear of it
        report |= {"status": 1, "error": str(e), "busy": isinstance(e, Busy)}
    if report["status"]:
        criu_repair.mend(group.pids(), shared_memory=Path(f"/proc/{job['supervisor_pid']}/root/dev/shm"))
    wanted = _agent_lives()
    if not job["was_frozen"] and not (wanted and job["hold"] and report["status"] == 0):
        group.thaw()
    report["frozen_s"] = time.monotonic() - began
    if not wanted:
        for path in (job["images"], job["empty"]):
            shutil.rmtree(path, ignore_errors=True)
        Path(job["mark"]).unlink(missing_ok=True)
    sys.stdout.write(json.dumps(report) + "\n")
    sys.stdout.flush()
    os._exit(0)


def _dump(job: dict[str, Any]) -> dict[str, Any]:
    stations = Stations("post-dump", holder="$PPID")
    began = time.monotonic()
    guide = os.fork()
    if guide == 0:
        try:
            stations.become_inside()
            _guide(job, stations.inside)
        except BaseException as e:
            sys.stderr.write(f"{e!r}\n")
            sys.stderr.flush()
        os._exit(127)
    stations.become_outside()
    report: dict[str, Any] = {}
    if stations.reached(guide):
        report["criu_s"] = time.monotonic() - began
        try:
            report |= _save(job)
        except Exception as e:
            report |= {"error": str(e)}
        else:
            stations.go_on()
    stations.close()
    _, wait_status = os.waitpid(guide, 0)
    status = _shell_status(wait_status)
    return report | {"status": 1 if "error" in report else status}


def _guide(job: dict[str, Any], inherited: Sequence[int]) -> NoReturn:
    """Enter the namespaces and run CRIU; ends with its exit status."""
    images_, cgroup, plugins = job["descriptors"]
    for descriptor in (images_, cgroup, plugins, *inherited):
        os.set_inheritable(descriptor, True)
    own = os.open("/proc/self/ns/ipc", os.O_RDONLY | os.O_CLOEXEC)
    namespaces.setns(job["supervisor"], _NAMESPACES)
    if sysvipc.any_here():
        namespaces.setns(own, namespaces.NEW_IPC)  # from there CRIU takes the other one along
    os.close(own)
    os.chdir("/")
    # The pid namespace is only entered by the next child.
    criu = os.fork()
    if criu == 0:
        null = os.open("/dev/null", os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        for number in (*_HARMLESS, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        # Where nobody takes the images any more it must fail, and let go of the processes, and not be killed.
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        os.setsid()
        command = criu_commands.dump_arguments(
            Path(job["criu"]),
            pid=job["pid"],
            images=images_,
            cgroup=cgroup,
            plugins=plugins,
            script=f"/proc/{os.getpid()}/fd/{inherited[0]}",
            layers=job["layers_inside"],
            lock_network=job["lock_network"] and not job["hold_back"],
            timeout_s=job["freeze_timeout_s"],
        )
        os.execv(command[0], command)
    for descriptor in inherited:
        os.close(descriptor)
    _, wait_status = os.waitpid(criu, 0)
    # Its helpers, where it was killed: one that was just being traced would stand there for ever.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(criu, signal.SIGKILL)
    os._exit(_shell_status(wait_status))


def _save(job: dict[str, Any]) -> dict[str, Any]:
    """Everything but CRIU's images, while nothing moves."""
    root = f"/proc/{job['supervisor_pid']}/root"
    client = image_stream.Client(f"/proc/self/fd/{job['descriptors'][0]}", image_stream.CAPTURE)
    try:
        _archive(f"{root}/dev/shm", client, images.SHARED_MEMORY)
        _archive(job["control"], client, images.CONTROL)
        for number, layer in enumerate(job["layers"]):
            _archive(layer, client, images.layer_archive(number))
    finally:
        client.close()
    pids = WorkloadCgroup(Path(job["cgroup"])).pids()
    needed = needs.needed_files(pids, root=Path(root), own=job["own"])
    return {
        "needs": [asdict(file) for file in needed],
        "shared": [asdict(each) for each in sharing.shared_by(pids, own=job["own"])],
        "processes": [procfs.command(pid) for pid in pids],
    }


def _archive(directory: str, client: image_stream.Client, name: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with os.fdopen(client.open(name), "wb") as pipe:
            archives.save(descriptor, pipe)
    finally:
        os.close(descriptor)


def _shell_status(wait_status: int) -> int:
    number = os.waitstatus_to_exitcode(wait_status)
    return number if number >= 0 else 128 - number


def _agent_lives() -> bool:
    """The agent keeps its end of our stdin open until it has read our report."""
    return not select.select([0], [], [], 0)[0]
