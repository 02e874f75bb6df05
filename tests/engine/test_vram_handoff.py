"""VRAM that one workload frees and another takes, in threads."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from kybernate.engine.vram_handoff import VramHandoff
from kybernate.model.errors import Busy, NoRoom
from kybernate.model.types import GpuUuid

pytestmark = pytest.mark.unit

GPU, OTHER = GpuUuid("GPU-a"), GpuUuid("GPU-b")


def taking(threads: ThreadPoolExecutor, handoff: VramHandoff, gpu: GpuUuid, size: int) -> Future[None]:
    begun = threading.Event()

    def take() -> None:
        begun.set()
        handoff.take(gpu, size)

    future = threads.submit(take)
    begun.wait()
    return future


def test_what_is_spare_is_there_at_once() -> None:
    handoff = VramHandoff({GPU: 10})
    handoff.take(GPU, 4)
    handoff.take(GPU, 6)
    handoff.close()
    with pytest.raises(NoRoom):
        handoff.take(GPU, 1)


def test_the_one_that_comes_waits_for_the_one_that_leaves() -> None:
    handoff = VramHandoff({})
    with ThreadPoolExecutor() as threads:
        waiting = taking(threads, handoff, GPU, 10)
        handoff.give(GPU, 4)
        handoff.give(OTHER, 100)
        assert not waiting.done()
        handoff.give(GPU, 6)
        waiting.result(60)


def test_an_end_with_too_little_is_told_with_the_numbers() -> None:
    handoff = VramHandoff({GPU: 3})
    with ThreadPoolExecutor() as threads:
        waiting = taking(threads, handoff, GPU, 10)
        handoff.close()
        with pytest.raises(NoRoom, match="10 bytes of VRAM are needed and 3"):
            waiting.result(60)


def test_a_failure_of_the_one_that_leaves_is_the_cause() -> None:
    handoff = VramHandoff({})
    cause = Busy("a kernel runs")
    with ThreadPoolExecutor() as threads:
        waiting = taking(threads, handoff, GPU, 1)
        handoff.fail(cause)
        with pytest.raises(NoRoom, match="a kernel runs") as raised:
            waiting.result(60)
    assert raised.value.__cause__ is cause
