"""The activator's processes: started in sessions of their own, so that they outlive an agent that is killed; found again by the
next one; started anew when they crash; replaced, without a gap, when their address or number changes.

Which there are is written down before anything else can go wrong, with each one's start time, so that a process id used again is
never taken for a worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from prometheus_client import multiprocess

from kybernate.agent.records.events import Events
from kybernate.agent.serving.address import Address
from kybernate.agent.serving.workers import Workers
from kybernate.agent.workloads.process_watch import readable
from kybernate.agent.workloads.tasks import Tasks
from kybernate.model import isolation
from kybernate.model.messages import End
from kybernate.process import procfs

log = logging.getLogger(__name__)

_PASSED_ON = re.compile(
    r"PATH|HOME|LANG|LC_[A-Z]+|TZ|TMPDIR|LD_LIBRARY_PATH|PYTHON.*|VIRTUAL_ENV|COVERAGE_.*|SSL_CERT_(FILE|DIR)|OTEL_.*|(https?|no|all)_proxy|"
    r"(HTTPS?|NO|ALL)_PROXY"
)
_LOOK_S = 0.05
_AGAIN_S = 0.2
_AGAIN_MAX_S = 30.0
_STEADY_S = 60.0
"""A worker that lived so long begins with a short pause when it crashes after all."""
_LATE_S = 10.0
"""A worker connects within one second, but on a machine that does nothing else in ten."""
_KILL_S = 5.0
"""After its grace: to exit by itself, then by SIGTERM."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A process, as it is written down."""

    worker: int
    pid: int
    started: int
    """By the kernel's clock."""
    address: Address


@dataclass(slots=True)
class _Slot:
    """One number of the present generation."""

    worker: Worker | None = None
    began: float = 0.0
    again_s: float = _AGAIN_S


@dataclass(frozen=True, slots=True)
class WorkerPaths:
    socket: Path
    record: Path
    log: Path
    metrics: Path


class Processes:
    """Use it in the loop's thread."""

    def __init__(
        self, *, paths: WorkerPaths, workers: Workers, events: Events, tasks: Tasks, clock: Callable[[], float]
    ) -> None:
        self._paths = paths
        self._workers = workers
        self._events = events
        self._tasks = tasks
        self._clock = clock
        self._address: Address | None = None
        self._slots: dict[int, _Slot] = {}
        self._leaving: dict[int, Worker] = {}
        """Of earlier generations, on their way out."""
        self._ending = False
        self._ended = False
        self._unwritten = False
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def address(self) -> Address | None:
        return self._address

    def all(self) -> list[Worker]:
        """Of the present generation."""
        return [slot.worker for _, slot in sorted(self._slots.items()) if slot.worker is not None]

    def missing(self) -> list[int]:
        """Numbers of workers that clients should be able to connect to by now."""
        listening = self._workers.listening()
        late = self._clock() - _LATE_S
        return [
            number
            for number, slot in sorted(self._slots.items())
            if (slot.worker is None and slot.again_s > _AGAIN_S * 2)
            or (slot.worker is not None and slot.began < late and slot.worker.pid not in listening)
        ]

    async def wait_listening(self) -> None:
        """Until clients can connect to as many as are wanted; at once where there are to be none."""
        while (address := self._address) is not None and not self._ending:
            there = {worker.pid for worker in self.all()}
            if len(there) >= address.workers and there <= self._workers.listening():
                return
            await asyncio.sleep(_LOOK_S)

    def adopt(self) -> set[int]:
        """Find what a predecessor started. Returns the processes of workers that live."""
        found = self._read()
        if not found:
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self._paths.metrics)  # of processes that are no more
        for worker in found:
            if self._address is None or worker.address == self._address:
                self._address = worker.address
                self._slots[worker.worker] = _Slot(worker, self._clock())
            else:
                self._leaving[worker.pid] = worker
            self._watch(worker)
        return {worker.pid for worker in found}

    def want(self, address: Address | None, *, grace_s: float) -> None:
        """Have workers with this address, and no others; None: have none."""
        old = [] if address == self._address else self.all()
        if address != self._address:
            self._slots = {}
            self._leaving |= {worker.pid: worker for worker in old}
            self._address = address
        if address is not None:
            for number in range(address.workers):
                slot = self._slots.setdefault(number, _Slot())
                if slot.worker is None:
                    self._start(number)
        self._write()
        if old:
            self._tasks.start(self._end(old, grace_s, after_others=address is not None), name="replaced workers")

    async def end(self, *, grace_s: float) -> None:
        """All of them, once what is in flight was answered or the grace is over."""
        self._ending = True
        everybody = [*self.all(), *self._leaving.values()]
        self._slots = {}
        await self._end(everybody, grace_s, after_others=False)
        self._ended = True
        self._paths.record.unlink(missing_ok=True)

    # -- one process -------------------------------------------------------------------------------------------------

    def _start(self, number: int) -> None:
        assert self._address is not None
        paths, address = self._paths, self._address
        command = [*isolation.python("kybernate.proxy"), "--agent", str(paths.socket), "--listen", address.listen]
        command += ["--worker", str(number), "--workers", str(address.workers)]
        command += ["--metrics-directory", str(paths.metrics)]
        if address.certificate is not None and address.key is not None:
            command += ["--tls-certificate", address.certificate, "--tls-key", address.key]
        if address.traces is not None:
            command += ["--otlp", address.traces]
        slot = self._slots[number]
        slot.began = self._clock()
        try:
            paths.metrics.mkdir(mode=0o700, exist_ok=True)
            with paths.log.open("ab") as output:
                paths.log.chmod(0o600)
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    cwd="/",
                    env=isolation.environment(worker_environment(os.environ)),
                )
        except OSError as e:
            self._crashed(number, f"can't be started: {e.strerror}")
            return
        found = procfs.stat(process.pid)
        assert found is not None  # not reaped yet, dead or alive
        self._children[process.pid] = process
        slot.worker = Worker(number, process.pid, found.start_time, address)
        self._write()
        self._watch(slot.worker)

    def _watch(self, worker: Worker) -> None:
        self._tasks.keep(lambda: self._report_end(worker), name=f"watcher of activator worker {worker.worker}")

    async def _report_end(self, worker: Worker) -> None:
        await _ended(worker)
        with contextlib.suppress(OSError):
            multiprocess.mark_process_dead(worker.pid, path=str(self._paths.metrics))  # type: ignore[no-untyped-call]
        if (child := self._children.pop(worker.pid, None)) is not None:
            child.wait()
        if self._leaving.pop(worker.pid, None) is not None or self._ending:
            return
        slot = self._slots.get(worker.worker)
        if slot is None or slot.worker != worker:
            return
        slot.worker = None
        self._write()
        self._crashed(worker.worker, "ended")

    def _crashed(self, number: int, what: str) -> None:
        slot = self._slots[number]
        if self._clock() - slot.began > _STEADY_S:
            slot.again_s = _AGAIN_S
        pause, slot.again_s = slot.again_s, min(2 * slot.again_s, _AGAIN_MAX_S)
        text = f"activator worker {number} {what}; the next one starts in {pause:g} s"
        self._events.record("activator", f"{text} (its log: {self._paths.log})", data={"worker": number})
        self._tasks.keep(lambda: self._start_again(number, pause), name=f"activator worker {number}")

    async def _start_again(self, number: int, pause_s: float) -> None:
        await asyncio.sleep(pause_s)
        slot = self._slots.get(number)
        if slot is not None and slot.worker is None and not self._ending:
            self._start(number)

    async def _end(self, workers: Sequence[Worker], grace_s: float, *, after_others: bool) -> None:
        if after_others:
            # Old and new share the port meanwhile, so nobody finds it closed.
            await self._all_listen()
        for worker in workers:
            self._workers.tell(worker.pid, End(grace_s=grace_s))
            if worker.pid not in self._workers.pids():
                _signal(worker, signal.SIGTERM)
        await asyncio.gather(*(self._see_off(worker, grace_s) for worker in workers))

    async def _all_listen(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_AGAIN_MAX_S):
                await self._workers.wait_for({worker.pid for worker in self.all()})

    @staticmethod
    async def _see_off(worker: Worker, grace_s: float) -> None:
        for seconds, number in ((grace_s + _KILL_S, signal.SIGTERM), (_KILL_S, signal.SIGKILL)):
            try:
                async with asyncio.timeout(seconds):
                    await _ended(worker)
                    break
            except TimeoutError:
                log.warning("activator worker %d doesn't end: %s", worker.pid, number.name)
                _signal(worker, number)
        else:
            await _ended(worker)

    # -- the record --------------------------------------------------------------------------------------------------

    def _write(self) -> None:
        """Where that fails the workers go on all the same, and it is tried again until it works."""
        try:
            self._write_now()
        except OSError as e:
            if not self._unwritten:
                self._unwritten = True
                log.warning("can't write %s, tried again: %s", self._paths.record, e.strerror)
                self._tasks.keep(self._write_later, name="record of activator workers")

    async def _write_later(self) -> None:
        await asyncio.sleep(_AGAIN_S)
        self._write_now()
        self._unwritten = False

    def _write_now(self) -> None:
        if self._ended:
            return
        everybody = [asdict(worker) for worker in [*self.all(), *self._leaving.values()]]
        draft = self._paths.record.with_suffix(".new")
        draft.write_text(json.dumps(everybody))
        draft.replace(self._paths.record)

    def _read(self) -> list[Worker]:
        """Those that live."""
        try:
            written = json.loads(self._paths.record.read_text())
            found = [Worker(**{**each, "address": Address(**each["address"])}) for each in written]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError, KeyError) as e:
            log.warning("can't read %s: %s", self._paths.record, e)
            return []
        return [worker for worker in found if _lives(worker)]


def worker_environment(own: Mapping[str, str]) -> dict[str, str]:
    """Of the agent's, what a worker needs: the bucket's secrets, for example, are not for whoever talks to clients."""
    return {name: value for name, value in own.items() if _PASSED_ON.fullmatch(name)}


def _lives(worker: Worker) -> bool:
    found = procfs.stat(worker.pid)
    return found is not None and found.alive and found.start_time == worker.started


async def _ended(worker: Worker) -> None:
    try:
        pidfd = os.pidfd_open(worker.pid)
    except OSError:
        return
    try:
        if _lives(worker):  # after opening: so that it is this one
            await readable(pidfd)
    finally:
        os.close(pidfd)


def _signal(worker: Worker, number: signal.Signals) -> None:
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(worker.pid)
        try:
            if _lives(worker):
                signal.pidfd_send_signal(pidfd, number)
        finally:
            os.close(pidfd)
