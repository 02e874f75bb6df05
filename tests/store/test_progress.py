"""How far a long step is: rates and times left that are never nonsense, and a word that stops it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.model.errors import Cancelled
from kybernate.model.progress import Progress
from kybernate.store.progress import Cancel, Meter

pytestmark = pytest.mark.unit


def progress(done: int, total: int | None, seconds: float = 2.0) -> Progress:
    return Progress("writing a", done, total, stored=0, seconds=seconds)


@pytest.mark.parametrize(
    ("one", "rate", "left"),
    [
        pytest.param(progress(100, 300), 50.0, 4.0, id="half-way"),
        pytest.param(progress(300, 300), 150.0, 0.0, id="done"),
        pytest.param(progress(400, 300), 200.0, 0.0, id="more than was expected"),
        pytest.param(progress(100, None), 50.0, None, id="nobody knows how much there is"),
        pytest.param(progress(0, 300), 0.0, None, id="before the first byte"),
        pytest.param(progress(100, 300, seconds=0.0), 0.0, None, id="at the first moment"),
    ],
)
def test_rates_and_what_is_left(one: Progress, rate: float, left: float | None) -> None:
    assert (one.rate, one.seconds_left) == (rate, left)


@given(st.integers(0, 1 << 60), st.none() | st.integers(0, 1 << 60), st.floats(0, 1e9))
def test_no_numbers_make_nonsense(done: int, total: int | None, seconds: float) -> None:
    left = progress(done, total, seconds).seconds_left
    assert left is None or left >= 0


def test_a_meter_tells_with_the_first_bytes_and_then_not_at_each_byte() -> None:
    told: list[Progress] = []
    meter = Meter("writing a", 1000, told.append)
    for _ in range(1000):
        meter.add(1, stored=2)
    assert told[0].done == 1
    assert len(told) < 100
    meter.tell()
    assert (told[-1].what, told[-1].done, told[-1].total, told[-1].stored) == ("writing a", 1000, 1000, 2000)


def test_what_there_is_to_do_may_become_known_later_and_nobody_may_listen() -> None:
    told: list[Progress] = []
    meter = Meter("x", None, told.append)
    meter.expect(7)
    meter.tell()
    assert told[-1].total == 7
    silent = Meter("x", None, None)
    silent.add(5)
    silent.tell()
    assert silent.done == 5


def test_a_step_that_was_cancelled_says_which_it_was() -> None:
    cancel = Cancel()
    cancel.check("writing a")
    assert not cancel.wait(0)
    cancel.set()
    with pytest.raises(Cancelled, match="writing a: cancelled"):
        cancel.check("writing a")
    assert cancel.wait(0)
