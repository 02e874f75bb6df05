"""Dump a workload's process tree into a directory, from which `restoring.restore` makes it, or clones of it, again.

What is dumped is everything below the workload's supervisor: CRIU's images of the processes, the content of /dev/shm,
the writable layers, and a record (images.py). The directory appears whole or not at all. The tree itself is untouched:
it stands still meanwhile, and then runs on or stays frozen, as asked; ending it is the caller's own step, after
`images.verify`.

While a dump runs, RUN/dump.json says so. It is gone afterwards, and when it isn't, the agent died: see `settle`.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kybernate
from kybernate.model.errors import BadInput, Busy, Conflict, KybernateError, NoRoom, Unsupported
from kybernate.process import (
    criu_commands,
    criu_repair,
    criu_timers,
    criu_zeros,
    images,
    network_lock,
    records,
)
from kybernate.process.bulk import Sink, Taken, Zeros, holds_pages
from kybernate.process.criu import Criu, find_criu
from kybernate.process.directory_bulk import DirectoryBulk
from kybernate.process.dump_record import write_record
from kybernate.process.image_server import Capture
from kybernate.process.images import Launched, TreeRecord
from kybernate.process.preflight import Connections, close_connections, dumpable, refusals, unsent, would_change
from kybernate.process.records import SupervisorRecord
from kybernate.process.specs import Network
from kybernate.process.tree import CONTROL, Tree, attach

MARK = "dump.json"
"""In the run directory while a dump runs; locked by the programs that make it."""
_START = "import sys; sys.path.append(sys.argv[1]); from kybernate.process.dumper import main; main()"
_SETTLE_S = 60.0
_LEAST_ROOM = 1 << 20
"""Bytes: a disk that has fewer left was full to whoever wrote much."""
_POLL_S = 0.01
_FIRST_WAIT_S = 0.05
"""For data on its way to arrive; twice as long each time."""


@dataclass(frozen=True, slots=True)
class DumpReport:
    """What a dump did. Times in seconds."""

    record: TreeRecord
    seconds: float
    frozen_s: float
    """How long the workload stood still, where it ran before and ran on afterwards."""
    criu_s: float
    closed: tuple[str, ...]
    """Connections that were closed by choice, in a line each."""
    notes: tuple[str, ...]
    """What will be another after a restore, or not be there, in a line each."""


def dump(
    tree: Tree,
    images_directory: Path,
    *,
    sink: Sink | None = None,
    hold: bool = False,
    connections: Connections = Connections.REFUSE,
    gpu_directories: Sequence[str] = (),
    allow_changes: bool = False,
    criu: Criu | None = None,
    freeze_timeout_s: float = 10.0,
) -> DumpReport:
    """Dump the tree into a new directory. Blocks until it is there.

    Args:
        images_directory: must not exist; its parent must.
        sink: where its bulk goes; None: into the directory, too.
        hold: leave the tree frozen on success, so that nothing it does after the dump is lost when it is killed.
            Otherwise, and after a failure, it is as frozen or running as it was.
        connections: what to do about TCP connections that lead out of the workload.
        gpu_directories: where simulated GPUs are. A GPU's state must have been checkpointed before.
        allow_changes: also where something that its program may notice would be another after a restore.

    Raises:
        BadInput: the directory can't be made. NoRoom: its disk is full.
        Busy: the processes could not be stopped in time; or data was on its way that can't be kept, whenever it was tried
            within that time; or they have bytes to send, and this kernel can't hold packets back.
        Conflict: the workload has ended, or is being dumped.
        Unsupported: it holds what can't be dumped; nothing was touched.
        KybernateError: CRIU failed; the message says why. The tree is as it was, and no directory is left.
    """
    began = time.monotonic()
    if tree.exit() is not None or tree.main_pid() is None:
        raise Conflict(f"workload {tree.name} has ended")
    changes = would_change(tree)
    problems = dumpable(tree, connections=connections, gpu_directories=gpu_directories, allow_changes=True)
    if problems := problems + ([] if allow_changes else refusals(changes)):
        raise Unsupported(f"workload {tree.name} can't be dumped: {'; '.join(problems)}")
    criu = criu or find_criu()
    record = records.read_supervisor(tree.run_directory)
    launched = images.read_launched(tree.run_directory)
    if settle(tree.run_directory, wait_s=0.0) is Settled.BUSY:
        raise Conflict(f"workload {tree.name} is being dumped")
    partial = _partial_of(images_directory)
    try:
        with _mark(tree, partial) as mark:
            _make(partial)  # only now: who finds the mark knows what to delete
            job = _job(
                tree,
                record,
                launched,
                partial,
                criu=criu,
                hold=hold,
                hold_back=tree.cgroup is not None and network_lock.hindrance(tree.cgroup) is None,
                freeze_timeout_s=freeze_timeout_s,
            )
            try:
                closed, report, taken = _dump_when_calm(
                    tree, job, partial, mark, sink or DirectoryBulk(partial), connections
                )
                zeros = _mend(tree, partial, taken)
                written = write_record(
                    tree, record, launched, partial, criu=criu, report=report, taken=taken, zeros=zeros
                )
                _publish(partial, images_directory)
            except BaseException:
                _leave_as_it_was(tree, was_frozen=job["was_frozen"])
                raise
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return DumpReport(
        record=written,
        seconds=time.monotonic() - began,
        frozen_s=report["frozen_s"],
        criu_s=report["criu_s"],
        closed=tuple(closed),
        notes=(*(change.text for change in changes), *report["notes"]),
    )


def _dump_when_calm(
    tree: Tree, job: dict[str, Any], partial: Path, mark: int, sink: Sink, connections: Connections
) -> tuple[list[str], dict[str, Any], dict[str, Taken]]:
    """Let it run for a moment, and try again, while data is on its way that can't be kept. Returns what was closed, the
    dumper's report, and the bulk."""
    timeout_s = job["freeze_timeout_s"]
    deadline = time.monotonic() + timeout_s
    wait_s, closed = _FIRST_WAIT_S, list[str]()
    while True:
        closed += _close(tree, connections, timeout_s)
        if not job["hold_back"]:
            _refuse_unsent(tree, timeout_s)
        try:
            return closed, *_run(tree, job, partial, mark, sink)
        except _OnItsWay:
            if time.monotonic() + wait_s > deadline:
                raise
        sink.forget()
        for path in partial.iterdir():
            path.unlink()
        tree.thaw()
        time.sleep(wait_s)
        wait_s *= 2


class _OnItsWay(Busy):
    """Data that CRIU can't keep."""


def _close(tree: Tree, connections: Connections, freeze_timeout_s: float) -> list[str]:
    """While it stands still: else it would make new ones at once."""
    if connections is Connections.REFUSE:
        return []
    tree.freeze(freeze_timeout_s)
    return close_connections(tree)


def _refuse_unsent(tree: Tree, freeze_timeout_s: float) -> None:
    """While it stands still: looked at before, it may have filled a connection since."""
    tree.freeze(freeze_timeout_s)
    if problems := unsent(tree):
        raise Busy(
            f"workload {tree.name} can't be dumped now, it is as before: {'; '.join(problems)}",
            hint="try again later, or pause it in RAM",
        )


class Settled(enum.Enum):
    """What `settle` found."""

    NOTHING = enum.auto()
    """No dump was under way."""
    CLEANED = enum.auto()
    """One had been cut off: its images are deleted, the workload is as frozen or running as it was."""
    BUSY = enum.auto()
    """One is still under way."""


def settle(run_directory: Path, *, wait_s: float = _SETTLE_S) -> Settled:
    """Clean up after a dump whose agent died. An agent calls it for each workload it finds.

    The dump's own program does that itself when it outlives the agent, so wait for it; killing CRIU in the middle is
    the last resort. With `wait_s` 0 nothing is killed.
    """
    path = run_directory / MARK
    deadline = time.monotonic() + wait_s
    killed = wait_s == 0
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return Settled.NOTHING
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not path.exists():
                return Settled.NOTHING
            if _is(path, descriptor):  # else that one has ended, and another has begun
                _clean(run_directory, Path(f"/proc/self/fd/{descriptor}").read_bytes())
                return Settled.CLEANED
        except BlockingIOError:
            if time.monotonic() >= deadline:
                if killed:
                    return Settled.BUSY
                _kill_helpers(run_directory)
                killed, deadline = True, time.monotonic() + wait_s
        finally:
            os.close(descriptor)
        time.sleep(_POLL_S)


def _kill_helpers(run_directory: Path) -> None:
    """Whatever else is with the supervisor."""
    with contextlib.suppress(KybernateError, OSError):
        tree = attach(run_directory)
        for pid in tree.helpers():
            os.kill(pid, signal.SIGKILL)


def _clean(run_directory: Path, text: bytes) -> None:
    with contextlib.suppress(ValueError, KeyError):  # cut off before it was written: then nothing was begun
        found = json.loads(text)
        shutil.rmtree(found["images"], ignore_errors=True)
        shutil.rmtree(_empty_beside(Path(found["images"])), ignore_errors=True)
        with contextlib.suppress(KybernateError):
            _leave_as_it_was(attach(run_directory), was_frozen=found["was_frozen"])
    (run_directory / MARK).unlink()


def _leave_as_it_was(tree: Tree, *, was_frozen: bool) -> None:
    """Also where CRIU was killed in the middle."""
    if tree.alive:
        criu_repair.mend(tree.pids(), shared_memory=Path(f"/proc/{tree.supervisor_pid}/root/dev/shm"))
    if not was_frozen:
        tree.thaw()


def _partial_of(images_directory: Path) -> Path:
    """Beside its later place, so that a rename is enough. Raises BadInput."""
    if images_directory.exists() or images_directory.is_symlink():
        raise BadInput(f"{images_directory} exists already", hint="a dump needs a new directory")
    return images_directory.parent.resolve() / f".{images_directory.name}.{secrets.token_hex(4)}.partial"


def _make(directory: Path) -> None:
    """For root only, since memory holds secrets."""
    try:
        directory.mkdir(mode=0o700)
    except OSError as e:
        raise _not_made(directory, e) from e


@contextlib.contextmanager
def _empty_directory(partial: Path) -> Iterator[Path]:
    """Beside the dump, so that it goes with it when the agent is killed."""
    path = _empty_beside(partial)
    _make(path)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _empty_beside(partial: Path) -> Path:
    return partial.with_suffix(".empty")


def _not_made(path: Path, error: OSError) -> KybernateError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return (NoRoom if full else BadInput)(f"can't make {path}: {error.strerror}")


def _publish(partial: Path, images_directory: Path) -> None:
    try:
        partial.rename(images_directory)
    except OSError as e:
        raise KybernateError(f"can't make {images_directory}: {e.strerror}") from e


@contextlib.contextmanager
def _mark(tree: Tree, partial: Path) -> Iterator[int]:
    """Say in the run directory that a dump is under way, and hold the lock that says it still is."""
    path = tree.run_directory / MARK
    descriptor = _locked_anew(path, tree)
    try:
        os.write(descriptor, json.dumps({"images": str(partial), "was_frozen": tree.frozen}).encode())
        yield descriptor
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _locked_anew(path: Path, tree: Tree) -> int:
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError as e:
            raise Conflict(f"workload {tree.name} is being dumped") from e
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if _is(path, descriptor):
            return descriptor
        os.close(descriptor)  # who looked in between took it for one that was left behind


def _is(path: Path, descriptor: int) -> bool:
    """Whether the file at `path` is the one that is open. Nobody takes it away from whoever has its lock."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(path.stat(follow_symlinks=False), os.fstat(descriptor))
    return False


def _job(
    tree: Tree,
    record: SupervisorRecord,
    launched: Launched,
    partial: Path,
    *,
    criu: Criu,
    hold: bool,
    hold_back: bool,
    freeze_timeout_s: float,
) -> dict[str, Any]:
    inside = record.run_directory_inside or tree.run_directory
    return {
        "criu": str(criu.path.resolve()),
        "pid": record.main_inside,
        "supervisor_pid": record.pid,
        "cgroup": str(record.cgroup),
        "empty": str(_empty_beside(partial)),
        "images": str(partial),
        "mark": str(tree.run_directory.resolve() / MARK),
        "control": str(tree.run_directory.resolve() / CONTROL),
        "layers": [str(layer) for layer in record.layers],
        "layers_inside": launched.layers,
        "own": [*launched.layers, "/dev/shm", str(inside)],
        "hold_back": hold_back,
        "lock_network": record.network == Network.HOST,
        "was_frozen": tree.frozen,
        "hold": hold,
        "freeze_timeout_s": freeze_timeout_s,
    }


def _run(
    tree: Tree, job: dict[str, Any], partial: Path, mark: int, sink: Sink
) -> tuple[dict[str, Any], dict[str, Taken]]:
    """The dumper's report, and the bulk."""
    try:
        capture = Capture(partial, sink)
    except OSError as e:
        raise _not_made(partial, e) from e
    try:
        with capture:
            report = _run_dumper(tree, job, partial, mark)
    except KybernateError as e:
        if isinstance(capture.error, KybernateError):  # CRIU knows only that nobody took any more
            raise capture.error from e
        raise
    if isinstance(capture.error, KybernateError):
        raise capture.error
    if capture.error is not None:
        raise _failed(tree, partial, str(capture.error)) from capture.error
    return report, capture.taken


def _run_dumper(tree: Tree, job: dict[str, Any], partial: Path, mark: int) -> dict[str, Any]:
    """Run dumper.py to its end and return its report."""
    with contextlib.ExitStack() as stack, _empty_directory(partial) as plugins:
        supervisor = os.pidfd_open(tree.supervisor_pid)
        stack.callback(os.close, supervisor)
        descriptors = [
            os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in (partial, tree.cgroup or partial, plugins)
        ]
        for descriptor in descriptors:
            stack.callback(os.close, descriptor)
        if not tree.alive:  # after opening: so it is its
            raise Conflict(f"workload {tree.name} has ended")
        dumper = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _START, str(Path(kybernate.__file__).parents[1]), tree.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            start_new_session=True,
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
            pass_fds=(supervisor, mark, *descriptors),
        )
        # Closing our end of its stdin before it has reported would mean that we died.
        with dumper:
            assert dumper.stdin is not None
            assert dumper.stdout is not None
            assert dumper.stderr is not None
            order = json.dumps(job | {"supervisor": supervisor, "descriptors": descriptors}) + "\n"
            with contextlib.suppress(BrokenPipeError):
                dumper.stdin.write(order.encode())
                dumper.stdin.flush()
            answer = dumper.stdout.read()
            complaint = dumper.stderr.read().decode("utf-8", "replace")
            dumper.wait()
    try:
        report: dict[str, Any] = json.loads(answer)
    except ValueError:
        raise _failed(tree, partial, complaint or "the program that runs CRIU was killed") from None
    if report["status"] == 0:
        return report
    if report.get("busy"):
        raise Busy(report["error"])
    raise _failed(tree, partial, report.get("error") or complaint or f"CRIU: exit status {report['status']}")


def _failed(tree: Tree, partial: Path, otherwise: str) -> KybernateError:
    if _room_left(partial) < _LEAST_ROOM:  # then CRIU couldn't write its log either
        return NoRoom(
            f"workload {tree.name} can't be dumped into {partial.parent}: No space left on device",
            hint="make room there; it is as before",
        )
    why = criu_commands.sentence(partial / images.LOG) or " ".join(otherwise.split())[-400:]
    if criu_commands.is_passing(partial / images.LOG):
        return _OnItsWay(
            f"workload {tree.name} can't be dumped now, it is as before: {why}",
            hint="try again later, or pause it in RAM",
        )
    return KybernateError(f"workload {tree.name} could not be dumped, it is as before: {why}")


def _room_left(directory: Path) -> int:
    """Bytes. Where nobody can tell there is room."""
    try:
        found = os.statvfs(directory)
    except OSError:
        return _LEAST_ROOM
    return found.f_bavail * found.f_frsize


def _mend(tree: Tree, partial: Path, taken: Mapping[str, Taken]) -> dict[str, Zeros]:
    """Returns the zeros that are to be put in again."""
    try:
        criu_timers.rearm(partial)
        return criu_zeros.leave_out(partial, {name: found.zero for name, found in taken.items() if holds_pages(name)})
    except OSError as e:
        full = e.errno in (errno.ENOSPC, errno.EDQUOT)
        raise (NoRoom if full else KybernateError)(
            f"the dump of workload {tree.name} can't be written to {partial.parent}: {e.strerror}"
        ) from e
