"""Tasks in threads: bounded, all waited for, and the first error stops those to come."""

from __future__ import annotations

import threading

import pytest

from kybernate.store.tasks import BoundedTasks


def test_all_are_done_when_it_is_finished() -> None:
    done: list[int] = []
    tasks = BoundedTasks(2, "test", lambda: None)
    for k in range(20):
        tasks.submit(done.append, k)
    tasks.finish()
    assert sorted(done) == list(range(20))


def test_the_first_error_is_raised_by_the_next_call_and_wakes_who_waits() -> None:
    failed = threading.Event()
    tasks = BoundedTasks(2, "test", failed.set)

    def fail(text: str) -> None:
        raise ValueError(text)

    tasks.submit(fail, "first")
    assert failed.wait(10)
    with pytest.raises(ValueError, match="first"):
        tasks.submit(fail, "second")
    with pytest.raises(ValueError, match="first"):
        tasks.finish()


def test_no_more_wait_than_it_says() -> None:
    release, begun = threading.Event(), threading.Semaphore(0)

    def hold() -> None:
        begun.release()
        release.wait(10)

    tasks = BoundedTasks(1, "test", lambda: None)
    tasks.submit(hold)
    tasks.submit(hold)
    third = threading.Thread(target=tasks.submit, args=(hold,))
    third.start()
    assert begun.acquire(timeout=10)
    third.join(0.05)
    assert third.is_alive(), "two are under way or wait: the third is held back"
    release.set()
    third.join(10)
    tasks.finish()
