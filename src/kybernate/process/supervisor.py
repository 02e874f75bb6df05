"""The small program that starts a workload and stays as its parent: PID 1 of the workload's pid namespace.

`launching.launch` runs it as `python -I -S -c ...` with a job (marshalled, on stdin) and reads one report a line (a
tuple's repr) from its stderr until end of file, which comes with the workload's exec:

    ("recorded",)                    STATE/records/NAME.json has been written
    ("exec",)                        the workload's exec is next
    ("error", step, errno, text)     it didn't come to that

Two processes: the *opener* is a child of the launching process, makes the namespaces, starts the supervisor and
ends; the *supervisor* belongs to nobody then and outlives the agent. It reaps, passes signals on to the
workload's process group and keeps the output within its bound. When the workload's first process ends, it takes
everything left in the tree with it, writes exit.json and ends.
Without namespaces it is a plain process that collects orphans as a subreaper.

A workload may be restored instead of started: then the supervisor lays its /dev/shm, runs CRIU inside and becomes
the parent of what CRIU brings back. It is recorded only when it is whole.

A start that has begun to make namespaces when its launching process is killed runs to its end all the same: the
agent that comes next finds it by its record. Imports are few on purpose (no json, no pathlib, no typing: a
third of the time a launch takes): this runs before each launch and stays in memory with each workload.
"""

# ruff: noqa: PTH102, PTH123, PTH208

from __future__ import annotations

import contextlib
import marshal
import os
import resource
import signal
import sys
import time

from kybernate.process import call_filter, namespaces, network_lock, sysvipc
from kybernate.process.output import Bounded
from kybernate.process.stations import Stations

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` itself takes 5 ms
    from collections.abc import Iterator
    from typing import Any, NoReturn, TypeAlias

    Job: TypeAlias = dict[str, Any]
    """What `launching` asks for; the keys are listed there."""

_NOT_FORWARDED = (signal.SIGCHLD, signal.SIGKILL, signal.SIGSTOP)
# A CRIU restore takes the same pids again, and its own helpers come first: leave them the low numbers.
_LAST_PID_BEFORE_WORKLOAD = 999


class _StepFailed(Exception):
    """A step of the start failed; `__cause__` is the OSError."""

    def __init__(self, step: str, cause: OSError) -> None:
        super().__init__(step)
        self.report = ("error", step, cause.errno, str(cause))


@contextlib.contextmanager
def _step(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise _StepFailed(name, e) from e


def main() -> NoReturn:
    """The opener: read the job, make the namespaces, start the supervisor in them, end."""
    status = os.dup(2)  # closed by an exec: its end of file tells the launching process that the workload runs
    try:
        job = marshal.load(sys.stdin.buffer)  # from the same interpreter, through a memfd
        # Launched by one that is gone: its successor has swept, or will, and mustn't be surprised by a late start.
        if os.getppid() == job["launcher"]:
            _open(job, status)
    except BaseException as e:  # a process of its own: whatever it is, the other side must hear it
        _report_failure(status, e)
        os._exit(1)
    os._exit(0)


def _report(status: int, *report: object) -> None:
    with contextlib.suppress(BrokenPipeError):  # the launching process is gone; the start goes on without it
        os.write(status, repr(report).encode() + b"\n")


def _report_failure(status: int, error: BaseException) -> None:
    report = error.report if isinstance(error, _StepFailed) else ("error", "supervisor", 0, repr(error))
    _report(status, *report)


def _open(job: Job, status: int) -> None:
    tasks = None
    if job["cgroup"] is not None:
        with _step("cgroup"):
            # Opened here: in the workload's mount namespace the cgroups are read-only.
            tasks = os.open(f"{job['cgroup']}/tasks/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
            _write(f"{job['cgroup']}/supervisor/cgroup.procs", "0")
    if job["isolated"]:
        kinds = namespaces.NEW_MOUNTS | namespaces.NEW_PIDS | namespaces.NEW_IPC | namespaces.NEW_UTS
        if job["network"] == "none":
            kinds |= namespaces.NEW_NETWORK
        with _step("namespaces"):
            namespaces.unshare(kinds)
    identity_reader, identity_writer = os.pipe()
    supervisor = os.fork()
    if supervisor == 0:
        os.close(identity_writer)
        try:
            _supervise(job, status, identity_reader, tasks)
        except BaseException as e:
            _report_failure(status, e)
        os._exit(1)
    # Only the opener sees the supervisor with the host's eyes. It waits for this line before it changes /proc.
    with open(f"/proc/{supervisor}/stat", "rb") as file:
        start_time = int(file.read().rpartition(b")")[2].split()[19])
    os.write(identity_writer, b'"pid": %d, "start_time": %d' % (supervisor, start_time))


def _supervise(job: Job, status: int, identity_reader: int, tasks: int | None) -> None:
    with open(identity_reader, "rb") as pipe:
        identity = pipe.read().decode()
    if not identity:
        return  # the opener was killed
    os.setsid()
    namespaces.set_process_name(f"kyb:{job['name']}")
    records = _open_records(job["state_directory"])
    if job["isolated"]:
        _furnish(job)
    else:
        namespaces.become_subreaper()
    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    restored = job["restore"]
    home = restored["run_directory"] if restored else job["run_directory"]  # where it is seen in here
    workload, gate = _restore(job, tasks) if restored else _fork_workload(job, status, tasks)
    # "record" is a JSON object but for its end.
    record = f'{job["record"]}, {identity}, "main_inside": {workload}}}'
    _write_atomically(f"{job['name']}.json", record, directory=records)
    _report(status, "recorded")
    os.close(records)  # before the workload runs: one of root's could come in through /proc/1/fd
    if gate is None:
        _report(status, "exec")
    else:
        os.write(gate, b"g")
    _detach(status, gate, tasks, *((restored["images"], restored["work"]) if restored else ()))
    output = Bounded(f"{home}/output.log", job["output_bytes"])
    wait_status = _reap_until_end_of(workload, output)
    _end_rest(isolated=job["isolated"])
    output.end()
    number = os.waitstatus_to_exitcode(wait_status)
    ended, by = (number, "null") if number >= 0 else (128 - number, str(-number))
    text = f'{{"status": {ended}, "signal": {by}, "time": {time.time()}}}'
    with contextlib.suppress(OSError):  # a workload of root's may have put something in the way
        _write_atomically(f"{home}/exit.json", text)
    os._exit(0)


def _open_records(state_directory: str) -> int:
    """Where the record goes. The workload's namespaces don't show it: opened before they are laid out."""
    path = f"{state_directory}/records"
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _fork_workload(job: Job, status: int, tasks: int | None) -> tuple[int, int]:
    """Its pid, and where to write a byte when it may go on; it ends when that is closed instead."""
    gate_reader, gate_writer = os.pipe()
    if job["isolated"]:
        with _step("pid"):
            _write("/proc/sys/kernel/ns_last_pid", str(_LAST_PID_BEFORE_WORKLOAD))
    workload = os.fork()
    if workload == 0:
        os.close(gate_writer)
        try:
            _become_workload(job, status, gate_reader, tasks)
        except BaseException as e:  # as in main
            _report_failure(status, e)
        os._exit(127)
    os.close(gate_reader)
    return workload, gate_writer


def _restore(job: Job, tasks: int | None) -> tuple[int, None]:
    """Have CRIU bring the workload's processes back here; returns its first process's pid.

    They are CRIU's children first and this process's when CRIU has ended, so their exit status comes here. Their packets are
    held back until all of them are whole: just before they run on.
    """
    restore = job["restore"]
    lock = network_lock.NetworkLock([])
    stations = Stations("pre-restore", "pre-resume", holder=str(os.getpid()))
    try:
        command = [*restore["command"], f"--action-script=/proc/{os.getpid()}/fd/{stations.script}"]
        criu = os.fork()
        if criu == 0:
            try:
                _become_criu(restore, command, tasks)
            except BaseException as e:  # as in main; CRIU's own words are in its log
                os.write(2, f"{e!r}\n".encode())
            os._exit(127)
        while station := stations.reached(criu):
            lock.close()
            if station == "pre-restore":  # not earlier: CRIU tries sockets of its own first
                lock = _hold_back(job["cgroup"], needed=restore["unsent"])
            else:
                _set_kernel_state(restore)
            stations.go_on()
        _, wait_status = os.waitpid(criu, 0)
    finally:
        lock.close()
        stations.close()
    if number := os.waitstatus_to_exitcode(wait_status):
        how = f"killed by signal {-number}" if number < 0 else f"exit status {number}"
        raise _StepFailed("restore", OSError(0, f"CRIU: {how}"))
    with _step("IPC namespace"):
        if sysvipc.join(restore["pid"]):
            sysvipc.show_queues()
    # Whatever starts later gets pids above all of these, so that the next restore finds them free.
    with contextlib.suppress(OSError):
        _write("/proc/sys/kernel/ns_last_pid", str(max(restore["last_pid"], _LAST_PID_BEFORE_WORKLOAD)))
    return restore["pid"], None


def _set_kernel_state(restore: Job) -> None:
    """What CRIU left out, in a child: what is imported for it goes with it."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            from kybernate.process import kernel_setting, removed_segments

            kernel_setting.run(restore["images"], restore["work"])
            removed_segments.remove_again(restore["images"], restore["pid"])
        os._exit(0)
    os.waitpid(child, 0)


def _hold_back(cgroup: str, *, needed: int) -> network_lock.NetworkLock:
    """`needed`: bytes that CRIU sends while the other ends aren't there yet. Without any, most restores go well all the same."""
    with _step("network lock"):
        try:
            return network_lock.hold(f"{cgroup}/tasks")
        except OSError:
            if needed:
                raise
    return network_lock.NetworkLock([])


def _forget_signals() -> None:
    """An exec would pass on what Python ignores, and what the agent was started to ignore: by nohup SIGHUP, by `&` SIGINT."""
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            with contextlib.suppress(OSError):
                signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _become_criu(restore: Job, command: list[str], tasks: int | None) -> None:
    if tasks is not None:
        os.write(tasks, b"0")
    if restore["shared_memory"]:
        from kybernate.process import archives, image_stream  # here alone: it takes 20 ms and memory

        client = image_stream.Client(f"/proc/self/fd/{restore['work']}", image_stream.SERVE)
        with image_stream.Whole(client.open(restore["shared_memory"]), restore["shared_memory_bytes"]) as file:
            archives.lay(file, "/dev/shm")
            file.finish()
        client.close()
    os.setsid()
    _forget_signals()
    os.set_inheritable(restore["work"], True)
    os.execv(command[0], command)


def _furnish(job: Job) -> None:
    with _step("mounts"):
        namespaces.own_mounts(cgroup_roots=job["cgroup_roots"])
    with _step("layer"):
        for path, upper, work in job["layers"]:
            namespaces.lay_over(path, upper=upper, work=work)
    with _step("mounts"):
        restore = job["restore"]
        inside = {"shown_as": restore["run_directory"], "around": restore["state_directory"]} if restore else {}
        namespaces.hide_all_but(job["state_directory"], job["run_directory"], **inside)
    with _step("host name"):
        namespaces.set_host_name(job["name"])
    if job["network"] == "none":
        with _step("loopback"):
            namespaces.raise_loopback()


def _become_workload(job: Job, status: int, gate_reader: int, tasks: int | None) -> None:
    if not os.read(gate_reader, 1):
        return  # the supervisor was killed
    os.setsid()
    if tasks is not None:
        with _step("cgroup"):
            os.write(tasks, b"0")
    _raise_limits()
    with _step("output"):
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        output = os.open(f"{job['run_directory']}/output.log", flags, 0o640)
        privileged = os.geteuid() == 0
        if privileged:
            os.fchown(output, job["uid"], job["gid"])
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
    with _step("user"):
        if job["isolated"]:
            namespaces.drop_capabilities()
            with contextlib.suppress(OSError):  # without it, it runs all the same; it may not be dumped then
                call_filter.install(io_uring=job["io_uring"])
        if privileged:
            os.setgroups(job["groups"])
            os.setresgid(job["gid"], job["gid"], job["gid"])
            os.setresuid(job["uid"], job["uid"], job["uid"])
    if not job["isolated"]:
        namespaces.die_with_parent(signal.SIGKILL)  # where no pid namespace does it
    with _step("directory"):
        os.chdir(job["directory"])
    os.umask(0o022)
    _forget_signals()
    _report(status, "exec")
    with _step("exec"):
        os.execvpe(job["argv"][0], job["argv"], job["environment"])


def _raise_limits() -> None:
    """Descriptors: as many as the kernel allows, since each extent is one. Core files: none, VRAM mappings are huge."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open("/proc/sys/fs/nr_open") as file:
        most = int(file.read())
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    _, hard_core = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard_core))


def _detach(*descriptors: int | None) -> None:
    for descriptor in descriptors:
        if descriptor is not None:
            os.close(descriptor)
    null = os.open("/dev/null", os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.close(null)
    os.chdir("/")


def _reap_until_end_of(workload: int, output: Bounded) -> int:
    """Pass signals on, reap orphans and bound the output; returns the wait status of the workload's first process."""
    everything = signal.valid_signals()
    while True:
        came = signal.sigtimedwait(everything, output.look())
        if came is None:
            continue
        if came.si_signo not in _NOT_FORWARDED:
            _forward(workload, came.si_signo)
        # Also after other signals: one pending SIGCHLD stands for any number of ended children.
        while True:
            pid, wait_status = os.waitpid(-1, os.WNOHANG)
            if pid == workload:
                return wait_status
            if pid == 0:
                break


def _forward(workload: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        try:
            os.killpg(workload, number)
        except ProcessLookupError:  # it has not made its own group yet
            os.kill(workload, number)


def _end_rest(*, isolated: bool) -> None:
    """Kill and reap everything the workload's first process left behind."""
    while True:
        if isolated:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
        else:
            for pid in _children():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _children() -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                if int(file.read().rpartition(b")")[2].split()[1]) == os.getpid():
                    found.append(int(name))
    return found


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _write_atomically(path: str, text: str, *, directory: int | None = None) -> None:
    """`path` may be relative to a directory's descriptor. Never through what somebody put in the way."""
    new = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new, dir_fd=directory)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=directory)
    with open(descriptor, "w") as file:
        file.write(text + "\n")
    os.replace(new, path, src_dir_fd=directory, dst_dir_fd=directory)
