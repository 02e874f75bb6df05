"""Start a workload: its run directory, cgroup, namespaces, user, limits, and a supervisor that outlives the agent.

What a workload gets, as root: its own pid, mount, ipc, host name and (unless `Network.HOST`) network namespace;
a cgroup that can be frozen; its user and groups; stdin from /dev/null, stdout and stderr to output.log; no other
descriptor of ours; a first pid of 1000; as many descriptors as the kernel allows; the agent's state directory
hidden but for its own run directory. Without root, or with `isolated=False`, it is a plain child in a session of
its own, and `Tree.left_out` says in a line each what it has to do without.

It is no sandbox: a workload that runs as root and means harm isn't stopped by this.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import marshal
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import kybernate
from kybernate.model.errors import BadInput, Conflict, KybernateError, NotFound, Unsupported
from kybernate.process import output, procfs, records
from kybernate.process.cgroups import WorkloadCgroup, cgroup_mounts
from kybernate.process.reports import FULL, check_reports, full
from kybernate.process.specs import LAYERS, LaunchSpec, Network, Restored
from kybernate.process.tree import CONTROL, OUTPUT, Tree, attach, clear, locked, sweep_locked

_START_TIMEOUT_S = 30.0
_START = "import sys; sys.path.append(sys.argv[1]); from kybernate.process.supervisor import main; main()"


def launch(spec: LaunchSpec) -> Tree:
    """Start a workload. When this returns, its program has been executed; takes some 50 ms.

    Raises:
        BadInput: the command can't be started (not found, not allowed, bad directory); nothing is left behind.
        Conflict: a workload of that name runs.
        NoRoom: the state directory is full.
        Unsupported: isolation is wanted, but there is no cgroup v2 hierarchy to use, or no right to make
            namespaces; or a restore without root.
    """
    privileged = os.geteuid() == 0
    if not privileged and (spec.uid, spec.gid) != (os.geteuid(), os.getegid()):
        raise BadInput(f"workload {spec.name}: only root can run it as user {spec.uid}, group {spec.gid}")
    if spec.restored is not None and not (privileged and spec.isolated):
        raise Unsupported(f"workload {spec.name}: restoring needs root and isolation")
    isolated = spec.isolated and privileged
    spec = _with_real_layers(spec)
    while True:
        made = _make_run_directory(spec)
        with locked(spec.run_directory) as there:
            if there:  # else another launch of that name failed and took the directory with it
                try:
                    return _launch(spec, isolated=isolated, made=made)
                except OSError as e:
                    if e.errno in FULL:
                        raise full(f"workload {spec.name} can't be started", spec.state_directory) from e
                    raise


def _with_real_layers(spec: LaunchSpec) -> LaunchSpec:
    """Their real paths, found once and kept: whose layer it is goes by the directory that was meant then.

    Who may change a link in such a path could else have what was written into a layer laid over any other directory.

    Raises:
        BadInput: a restored workload's directory is another one now.
    """
    real = [layer.resolve() for layer in spec.layers]
    if spec.restored is not None and (moved := [str(p) for p, q in zip(spec.layers, real, strict=True) if p != q]):
        raise BadInput(
            f"workload {spec.name}: {moved[0]}, which it has a layer over, is another directory now",
            hint="a symbolic link leads elsewhere; take it away",
        )
    return dataclasses.replace(spec, layers=real)


def _launch(spec: LaunchSpec, *, isolated: bool, made: bool) -> Tree:
    """All the rest, with the run directory locked."""
    _refuse_running(spec)
    had_output = (spec.run_directory / OUTPUT).exists()
    with contextlib.suppress(OSError):  # of a life whose supervisor was killed
        output.close_up(str(spec.run_directory / OUTPUT))
    group: WorkloadCgroup | None = None
    # Left after everything that was begun has ended: then nobody waits for it.
    with contextlib.ExitStack() as serving:
        try:
            (spec.run_directory / records.EXIT).unlink(missing_ok=True)
            _make_control_directory(spec)
            if isolated:
                _make_layers(spec)
            if spec.restored is not None:
                _make_output(spec)
            _write_papers(spec)
            if isolated:
                group = WorkloadCgroup.create(state_directory=spec.state_directory.resolve(), name=spec.name)
            if spec.restored is not None:
                serving.enter_context(spec.restored.serving(_make_work_directory(spec)))
            _start_supervisor(spec, group)
            if spec.restored is not None:
                spec.restored.came_back(spec.run_directory / records.RESTORE)
            shutil.rmtree(spec.run_directory / records.RESTORE, ignore_errors=True)
            return attach(spec.run_directory)
        except BaseException:
            _undo(spec, group)
            if not had_output:
                (spec.run_directory / OUTPUT).unlink(missing_ok=True)
            if made:
                with contextlib.suppress(OSError):  # somebody else put something there
                    spec.run_directory.rmdir()
            raise


def _make_work_directory(spec: LaunchSpec) -> Path:
    """Of a restore. What one that was cut off has left in it goes."""
    work = spec.run_directory / records.RESTORE
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(mode=0o700)
    return work


def _make_run_directory(spec: LaunchSpec) -> bool:
    try:
        spec.run_directory.parent.mkdir(parents=True, exist_ok=True)
        spec.run_directory.mkdir(mode=0o755)
    except FileExistsError:
        if spec.run_directory.is_dir() and not spec.run_directory.is_symlink():
            return False
        raise BadInput(f"workload {spec.name}: {spec.run_directory} is not a directory") from None
    except OSError as e:
        if e.errno in FULL:
            raise full(f"workload {spec.name} can't be started", spec.state_directory) from e
        raise BadInput(f"workload {spec.name}: can't make {spec.run_directory}: {e.strerror}") from e
    return True


def _make_control_directory(spec: LaunchSpec) -> None:
    """The only place of the run directory where the workload may write. What a dump has of it goes into a new one, into
    which nobody has put anything in the way."""
    control = spec.run_directory / CONTROL
    if control.is_symlink():  # a workload of root's can do that
        control.unlink()
    if spec.restored is not None and control.exists():
        shutil.rmtree(control)
    control.mkdir(mode=0o700, exist_ok=True)
    if spec.restored is not None:
        spec.restored.lay(spec.restored.control, control)
    if os.geteuid() == 0:
        os.chown(control, spec.uid, spec.gid, follow_symlinks=False)


def _make_output(spec: LaunchSpec) -> None:
    """What restored processes write to must be there before they are; what an earlier life wrote stays."""
    descriptor = os.open(spec.run_directory / OUTPUT, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o640)
    try:
        os.fchown(descriptor, spec.uid, spec.gid)
    finally:
        os.close(descriptor)


def _make_layers(spec: LaunchSpec) -> None:
    """Empty, or as the dump has them."""
    for number, (upper, work) in enumerate(spec.layer_directories):
        if not spec.layers[number].is_dir():
            raise BadInput(f"workload {spec.name}: no layer can be laid over {spec.layers[number]}: no directory")
        for directory in (upper, work):
            if directory.exists():
                shutil.rmtree(directory)
            directory.mkdir(parents=True, mode=0o700)
        if spec.restored is not None:  # with the owner and mode that it had
            spec.restored.lay(spec.restored.layers[number], upper)
            continue
        like = spec.layers[number].stat()
        os.chown(upper, like.st_uid, like.st_gid)
        upper.chmod(like.st_mode & 0o7777)


def _write_papers(spec: LaunchSpec) -> None:
    """What a dump must know of the start, and what tells this life from others."""
    launched = {
        "argv": [str(argument) for argument in spec.argv],
        "environment": {str(name): str(value) for name, value in spec.environment.items()},
        "directory": str(spec.directory),
        "uid": spec.uid,
        "gid": spec.gid,
        "groups": list(spec.groups),
        "network": str(spec.network),
        "layers": [str(layer) for layer in spec.layers],
    }
    # 128 bits; "restored" tells a program that has copied the seed of the life before to copy this one.
    identity = {
        "KYBERNATE_WORKLOAD": spec.name,
        "KYBERNATE_SEED": str(secrets.randbits(128)),
        "KYBERNATE_RESTORED": str(int(spec.restored is not None)),
    }
    lines = "".join(f"{name}={value}\n" for name, value in identity.items())
    for name, mode, text in ((records.LAUNCH, 0o600, json.dumps(launched)), (records.IDENTITY, 0o644, lines)):
        new = spec.run_directory / f"{name}.new"
        new.unlink(missing_ok=True)
        new.touch(mode=mode)
        new.chmod(mode)
        new.write_text(text)
        new.replace(spec.run_directory / name)


def _refuse_running(spec: LaunchSpec) -> None:
    try:
        sweep_locked(spec.run_directory)
    except Conflict as e:
        raise Conflict(f"workload {spec.name} already runs", hint="stop it first, or choose another name") from e


def _restore_job(restored: Restored, descriptors: Sequence[int]) -> dict[str, Any]:
    images, work = descriptors
    return {
        "images": images,
        "work": work,
        "pid": restored.pid,
        "last_pid": restored.last_pid,
        "unsent": restored.unsent,
        "run_directory": str(restored.run_directory),
        "state_directory": str(restored.state_directory),
        "shared_memory": restored.shared_memory,
        "shared_memory_bytes": restored.shared_memory_bytes,
        "command": list(restored.command(work)),
    }


def _job(spec: LaunchSpec, group: WorkloadCgroup | None, descriptors: Sequence[int]) -> dict[str, Any]:
    """What the supervisor is told; see supervisor.py."""
    isolated = group is not None
    restored = spec.restored
    environment = {str(name): str(value) for name, value in spec.environment.items()} | {
        "KYBERNATE_WORKLOAD": str(spec.name),
        "KYBERNATE_RUN_DIRECTORY": str(spec.run_directory.resolve()),
    }
    record = {
        "name": spec.name,
        "boot_id": procfs.boot_id(),
        "isolated": isolated,
        "network": spec.network if isolated else Network.HOST,
        "cgroup": None if group is None else str(group.path),
        "launched": time.time(),
        "left_out": [] if isolated else _left_out(spec),
        "run_directory_inside": str(restored.run_directory if restored else spec.run_directory.resolve()),
        "layers": [str(upper) for upper, _ in spec.layer_directories] if isolated else [],
    }
    return {
        "name": str(spec.name),
        "launcher": os.getpid(),
        "argv": [str(argument) for argument in spec.argv],
        "layers": [
            [str(path), str(upper.resolve()), str(work.resolve())]
            for path, (upper, work) in zip(spec.layers, spec.layer_directories, strict=True)
        ],
        "restore": None if restored is None else _restore_job(restored, descriptors),
        "environment": environment,
        "directory": str(spec.directory),
        "run_directory": str(spec.run_directory.resolve()),
        "state_directory": str(spec.state_directory.resolve()),
        "uid": spec.uid,
        "gid": spec.gid,
        "groups": list(spec.groups),
        "network": str(spec.network),
        "isolated": isolated,
        "io_uring": spec.io_uring,
        "cgroup": None if group is None else str(group.path),
        "cgroup_roots": [] if group is None else [str(point) for point in cgroup_mounts()],
        "output_bytes": spec.output_bytes,
        "record": json.dumps(record).removesuffix("}"),
    }


def _left_out(spec: LaunchSpec) -> list[str]:
    why = "not root" if spec.isolated else "isolation is off"
    return [
        f"{why}: no namespaces, so the workload sees the host's processes, network and the agent's files",
        f"{why}: no cgroup, so it is frozen by SIGSTOP, which a program can notice",
        *([f"{why}: no layers, so it writes into the host's directories"] if spec.layers else []),
    ]


def _start_supervisor(spec: LaunchSpec, group: WorkloadCgroup | None) -> None:
    """Run the opener and read its reports until the workload's exec."""
    root = Path(kybernate.__file__).parents[1]
    timeout_s = _START_TIMEOUT_S if spec.restored is None else spec.restored.timeout_s
    with contextlib.ExitStack() as stack:
        descriptors = [stack.enter_context(_opened(path)) for path in _directories_to_pass(spec)]
        job = stack.enter_context(os.fdopen(os.memfd_create("kybernate-job"), "w+b"))
        job.write(marshal.dumps(_job(spec, group, descriptors)))
        job.seek(0)
        opener = subprocess.Popen(
            # The run directory is there for people who look at the list of processes.
            [sys.executable, "-I", "-S", "-c", _START, str(root), str(spec.run_directory)],
            stdin=job,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd="/",
            start_new_session=True,
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
            pass_fds=descriptors,
        )
    try:
        _, raw = opener.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired as e:
        opener.kill()
        opener.wait()
        if opener.stderr is not None:  # the supervisor has it too, until it is killed
            opener.stderr.close()
        raise KybernateError(f"workload {spec.name} did not start within {timeout_s:g} s") from e
    except BaseException:
        opener.send_signal(signal.SIGKILL)
        opener.communicate()
        raise
    check_reports(spec, raw.decode("utf-8", "replace"))


def _directories_to_pass(spec: LaunchSpec) -> list[Path]:
    """Of a restore: the dump, and where CRIU gets its images and writes its log. Their paths may be hidden inside."""
    return [] if spec.restored is None else [spec.restored.images, spec.run_directory / records.RESTORE]


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _flat(pairs: Iterable[tuple[Path, Path]]) -> list[Path]:
    return [path for pair in pairs for path in pair]


def _undo(spec: LaunchSpec, group: WorkloadCgroup | None) -> None:
    """After a failed start: as if it had never been tried."""
    try:
        attach(spec.run_directory).remove_locked()
    except NotFound:
        if group is not None:
            group.remove(_START_TIMEOUT_S)
    clear(spec.run_directory)
    for directory in (
        spec.run_directory / records.RESTORE,
        spec.run_directory / LAYERS,
        *_flat(spec.layer_directories),
    ):
        shutil.rmtree(directory, ignore_errors=True)
    for name in (records.EXIT, f"{records.EXIT}.new", records.LAUNCH, records.IDENTITY):
        (spec.run_directory / name).unlink(missing_ok=True)
