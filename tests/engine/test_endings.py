"""A switch that failed since the program ended is told as that, and an undo is done whatever the machine is short of."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import Eventually

from kybernate.engine.context import every
from kybernate.engine.endings import ProgramEnded, as_told, has_ended
from kybernate.engine.target import CudaProcess, Target
from kybernate.engine.threads import Threads
from kybernate.model.errors import Busy, WorkloadLost
from kybernate.model.types import Backend, HostPid, WorkloadName


class NoTree:
    """A tree nobody asks."""

    frozen = False

    def pids(self) -> list[HostPid]:
        return []

    def freeze(self, timeout_s: float) -> None:
        raise NotImplementedError

    def thaw(self) -> None:
        raise NotImplementedError


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as popen:
        yield popen
        popen.kill()


def target_of(process: subprocess.Popen[bytes]) -> Target:
    name = WorkloadName("w")
    return Target(name, NoTree(), [CudaProcess(HostPid(process.pid), Path("nowhere"))], Backend.BROKER)


def test_the_program_that_ended_is_named(process: subprocess.Popen[bytes], eventually: Eventually) -> None:
    target, pid = target_of(process), HostPid(process.pid)
    noticed = WorkloadLost(f"process {pid} is gone (Broken pipe) while asked to discard")
    assert not has_ended(pid)
    assert as_told(target, noticed, doing="paused") is noticed, "it lives: then it is what it seems"
    process.kill()
    eventually(lambda: has_ended(pid), what="the end, not yet reaped")
    told = as_told(target, noticed, doing="paused")
    assert isinstance(told, ProgramEnded)
    assert str(told).startswith(f"process {pid} of workload w ended while it was being paused")
    assert told.hint == "`kybernate logs w` has its last words"
    process.wait()
    assert has_ended(pid)


def test_a_refusal_is_not_its_end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    refused = Busy("GPU work did not finish in time")
    assert as_told(target_of(process), refused, doing="paused") is refused


def test_without_threads_it_is_done_one_after_the_other() -> None:
    threads = Threads("none")
    threads.shutdown()
    assert every(threads, lambda number: number * 2, [1, 2, 3]) == [2, 4, 6]
    with pytest.raises(ZeroDivisionError):
        every(threads, lambda number: 1 // number, [1, 0, 3])
