"""What all operations share: clocks of steps, one thing for many processes at once, and what an error may promise."""

from __future__ import annotations

import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import pytest

from kybernate.engine.context import Clock, every, unsaid
from kybernate.model.errors import Busy, Conflict, KybernateError, NoRoom, Unsupported, WorkloadLost

pytestmark = pytest.mark.unit


# -- clocks --------------------------------------------------------------------------------------------------------------


def test_steps_are_noted_in_their_order_with_their_times_also_where_one_fails() -> None:
    clock = Clock()

    def fail() -> None:
        with clock.step("second"):
            raise ValueError("it")

    with clock.step("first"):
        time.sleep(0.02)
    with pytest.raises(ValueError, match="it"):
        fail()
    first, second = clock.steps
    assert (first.step, second.step) == ("first", "second")
    assert first.seconds >= 0.02
    assert clock.seconds >= first.seconds + second.seconds


def test_a_step_within_a_step_ends_before_it() -> None:
    clock = Clock()
    with clock.step("outer"), clock.step("inner"):
        pass
    assert [step.step for step in clock.steps] == ["inner", "outer"]


# -- for all at once -----------------------------------------------------------------------------------------------------


class NoThreads(Executor):
    """A machine that is out of threads."""

    def submit(self, *_: Any, **__: Any) -> Future[Any]:
        raise RuntimeError("can't start new thread")


def test_results_come_in_the_order_of_what_was_asked_not_of_who_is_first() -> None:
    def after(seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    with ThreadPoolExecutor(3) as threads:
        assert every(threads, after, [0.03, 0.0, 0.01]) == [0.03, 0.0, 0.01]


def test_nothing_to_do_is_done_and_one_thing_needs_no_thread() -> None:
    assert every(NoThreads(), str, []) == []
    assert every(NoThreads(), str, [1]) == ["1"]


def test_without_threads_it_is_done_one_after_the_other_all_the_same() -> None:
    assert every(NoThreads(), str, [1, 2, 3]) == ["1", "2", "3"]


@pytest.mark.parametrize("threads", [True, False])
def test_one_that_fails_stops_none_of_the_others_and_the_first_error_is_raised(*, threads: bool) -> None:
    """An undo of one process must not be left out for the sake of another's."""
    done: list[int] = []

    def do(number: int) -> None:
        if number % 2:
            raise KybernateError(f"number {number}")
        done.append(number)

    with ThreadPoolExecutor(2) as pool, pytest.raises(KybernateError, match="number 1"):
        every(pool if threads else NoThreads(), do, range(6))
    assert sorted(done) == [0, 2, 4]


# -- errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Busy, Unsupported, NoRoom, Conflict])
def test_a_refusal_promises_that_nothing_has_changed_so_it_is_none_once_something_has(
    kind: type[KybernateError],
) -> None:
    told = unsaid(kind("no", hint="try again"))
    assert type(told) is KybernateError
    assert (told.message, told.hint) == ("no", "try again") if isinstance(told, KybernateError) else False


@pytest.mark.parametrize("error", [WorkloadLost("gone"), KybernateError("x"), OSError(5, "io"), KeyError("k")])
def test_any_other_error_is_told_as_it_is(error: Exception) -> None:
    assert unsaid(error) is error
