"""Who failed is left alone: longer each time, up to a minute, and not for ever."""

from __future__ import annotations

import pytest
from tests.agent.building import NOW, A, B, Clock

from kybernate.agent.serving.backoff import Backoff

pytestmark = pytest.mark.unit


def test_each_failure_in_a_row_doubles_the_pause_up_to_a_minute() -> None:
    clock = Clock()
    backoff = Backoff(clock)
    pauses = []
    for _ in range(8):
        failure = backoff.add(A, "no")
        pauses.append(failure.pause_s)
        assert failure.until == clock.now + failure.pause_s
        clock.now = failure.until
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


@pytest.mark.parametrize(
    ("later", "pause"),
    [
        pytest.param(60.0, 4.0, id="a minute after it could be tried again it still counts"),
        pytest.param(60.01, 1.0, id="after that it was steady, and begins anew"),
    ],
)
def test_a_failure_after_a_steady_time_is_a_first_one(later: float, pause: float) -> None:
    clock = Clock()
    backoff = Backoff(clock)
    backoff.add(A, "no")
    backoff.add(A, "no")
    clock.now = backoff.until(A) + later
    assert backoff.add(A, "no").pause_s == pause


def test_while_it_is_left_alone_the_reason_is_given_and_then_no_more() -> None:
    clock = Clock()
    backoff = Backoff(clock)
    backoff.add(A, "it said: token=secret", public="it ended")
    assert backoff.reason(A, public=False) == "it said: token=secret"
    assert backoff.reason(A, public=True) == "it ended"
    clock.passes(1)
    assert backoff.reason(A, public=False) == ""


def test_a_reason_without_a_public_word_is_everybodys() -> None:
    backoff = Backoff(Clock())
    backoff.add(A, "no room")
    assert backoff.reason(A, public=True) == "no room"


def test_an_empty_public_word_hides_the_reason() -> None:
    backoff = Backoff(Clock())
    backoff.add(A, "secret", public="")
    assert backoff.reason(A, public=True) == ""


def test_the_last_failure_says_when_it_was_and_until_when_it_counts() -> None:
    clock = Clock()
    backoff = Backoff(clock)
    backoff.add(A, "one", public="public one")
    clock.passes(10)
    backoff.add(A, "two", public="public two")
    last = backoff.last(A, public=False)
    assert last is not None
    assert (last.when, last.reason, last.until) == (NOW + 10, "two", NOW + 12)
    public = backoff.last(A, public=True)
    assert public is not None
    assert public.reason == "public two"
    clock.passes(1000)
    assert backoff.last(A, public=False) == last, "it was the last one, however long ago"


def test_nobody_failed_of_whom_nothing_is_known() -> None:
    backoff = Backoff(Clock())
    assert (backoff.until(A), backoff.reason(A, public=True), backoff.last(A, public=True)) == (0.0, "", None)
    backoff.clear(A)


def test_forgiven_it_begins_anew_and_others_do_not() -> None:
    backoff = Backoff(Clock())
    for name in (A, A, B, B):
        backoff.add(name, "no")
    backoff.clear(A)
    assert (backoff.add(A, "no").pause_s, backoff.add(B, "no").pause_s) == (1, 4)
    backoff.clear_all()
    assert (backoff.add(A, "no").pause_s, backoff.add(B, "no").pause_s) == (1, 1)
