from __future__ import annotations

import pytest

from kybernate.engine.undo import UNFORESEEN, UndoStack
from kybernate.model.errors import Busy

pytestmark = pytest.mark.unit


def test_last_step_is_undone_first() -> None:
    done: list[str] = []
    stack = UndoStack()
    stack.push("first", lambda: done.append("first"))
    stack.push("second", lambda: done.append("second"))

    assert stack.roll_back() == []
    assert done == ["second", "first"]
    assert stack.roll_back() == []


def test_an_undo_that_fails_does_not_stop_the_others() -> None:
    done: list[str] = []

    def fail() -> None:
        raise OSError("no")

    stack = UndoStack()
    stack.push("first", lambda: done.append("first"))
    stack.push("second", fail)

    assert stack.roll_back() == ["second: OSError('no')"]
    assert done == ["first"]


def test_what_nobody_has_foreseen_is_told_apart(caplog: pytest.LogCaptureFixture) -> None:
    def refuse() -> None:
        raise Busy("it is in use", hint="try again")

    def fail() -> None:
        raise ValueError("no")

    stack = UndoStack()
    stack.push("first", refuse)
    assert stack.roll_back() == ["first: it is in use"]
    assert UNFORESEEN not in caplog.text
    stack.push("second", fail)
    assert stack.roll_back() == ["second: ValueError('no')"]
    assert UNFORESEEN in caplog.text


def test_after_commit_there_is_no_way_back() -> None:
    done: list[str] = []
    stack = UndoStack()
    stack.push("first", lambda: done.append("first"))
    stack.commit()

    assert stack.roll_back() == []
    assert done == []
