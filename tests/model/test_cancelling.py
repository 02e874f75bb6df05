"""The word to stop a long step: once said it stays, and whoever listens hears it once."""

from __future__ import annotations

import contextlib

import pytest

from kybernate.model.cancelling import Cancellation
from kybernate.model.errors import Cancelled

pytestmark = pytest.mark.unit


def test_a_step_goes_on_until_it_is_cancelled_and_then_says_which_it_was() -> None:
    cancellation = Cancellation()
    cancellation.check("park a")
    cancellation.cancel()
    for _ in range(2):
        with pytest.raises(Cancelled, match="park a: cancelled"):
            cancellation.check("park a")


def test_who_listens_is_told_while_it_listens_and_who_comes_late_at_once() -> None:
    cancellation = Cancellation()
    heard: list[str] = []
    with cancellation.forwarded_to(lambda: heard.append("gone")):
        pass
    with (
        cancellation.forwarded_to(lambda: heard.append("first")),
        cancellation.forwarded_to(lambda: heard.append("second")),
    ):
        cancellation.cancel()
        assert heard == ["first", "second"]
        with cancellation.forwarded_to(lambda: heard.append("late")):
            assert heard[-1] == "late"
    assert heard == ["first", "second", "late"]


def test_a_failure_in_the_block_ends_the_listening_too() -> None:
    cancellation = Cancellation()
    heard: list[str] = []
    with contextlib.suppress(ZeroDivisionError), cancellation.forwarded_to(lambda: heard.append("x")):
        raise ZeroDivisionError
    cancellation.cancel()
    assert heard == []
