from __future__ import annotations

from kybernate.engine.undo import UndoStack


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

    assert stack.roll_back() == ["second: no"]
    assert done == ["first"]


def test_after_commit_there_is_no_way_back() -> None:
    done: list[str] = []
    stack = UndoStack()
    stack.push("first", lambda: done.append("first"))
    stack.commit()

    assert stack.roll_back() == []
    assert done == []
