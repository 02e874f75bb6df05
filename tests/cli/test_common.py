"""What every command shares: options, JSON, tables, and how far something has come, in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kybernate.cli.common import (
    Common,
    default_shown,
    moved,
    print_json,
    print_json_line,
    say,
    say_notes,
    table,
    working,
)
from kybernate.model.api import GoneView, OperationView
from kybernate.model.types import GIB, MIB

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, None), (False, None), (True, "True"), (30.0, "30"), (0.5, "0.5"), (3, "3"), ("nvme", "nvme")],
)
def test_a_default_is_shown_where_it_says_something(value: object, shown: str | None) -> None:
    assert default_shown(value) == shown


def test_a_state_directory_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Common(state_dir=Path("here")).state.root == tmp_path / "here"
    monkeypatch.setenv("KYBERNATE_STATE_DIR", "/somewhere")
    assert Common().state.root == Path("/somewhere")


def test_json_of_models_lists_and_plain_data(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": GoneView(workload="x"), "b": [GoneView(workload="y"), 1], "c": (None,)})
    assert json.loads(capsys.readouterr().out) == {"a": {"workload": "x"}, "b": [{"workload": "y"}, 1], "c": [None]}
    print_json_line(GoneView(workload="x"))
    assert capsys.readouterr().out == '{"workload":"x"}\n'


def test_a_remark_goes_to_standard_error_and_commands_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say("first\nsecond\x1b[31m")
    say_notes("a", ["one", "two"])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "first\nsecond·[31m\nkybernate: a: one\nkybernate: a: two\n"


def test_columns_are_aligned_without_ruling_and_without_blanks_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    table(("A", "LONG"), [("x\n", "1"), ("yyyy", "")])
    assert capsys.readouterr().out == "A     LONG\nx·    1\nyyyy\n"
    table(("A", "LONG"), [("x", "123456789")], width=8)
    assert capsys.readouterr().out == "A  LONG\nx  12345\n"
    table(("A",), [])
    assert capsys.readouterr().out == "A\n"


def operation(**given: Any) -> OperationView:
    return OperationView(kind="pause", seconds=1.0, **given)


@pytest.mark.parametrize(
    ("one", "words"),
    [
        pytest.param(None, "", id="nothing is under way"),
        pytest.param(operation(), "", id="nothing is counted"),
        pytest.param(operation(bytes_total=0), "", id="there is nothing to count"),
        pytest.param(operation(bytes_total=2 * GIB), ", 0 B of 2.0 GiB", id="before the first byte"),
        pytest.param(
            operation(bytes_total=2 * GIB, bytes_done=GIB, bytes_per_s=512 * MIB, seconds_left=2.0),
            ", 1.0 GiB of 2.0 GiB, 512.0 MiB/s, 2.0 s left",
            id="on its way",
        ),
        pytest.param(
            operation(bytes_total=GIB, bytes_done=GIB, bytes_per_s=0.0, seconds_left=0.0),
            ", 1.0 GiB of 1.0 GiB",
            id="no rate",
        ),
    ],
)
def test_how_far_a_switch_has_come(one: OperationView | None, words: str) -> None:
    assert moved(one) == words


@pytest.mark.parametrize("quiet", [True, False])
def test_where_nobody_watches_nothing_is_shown(capsys: pytest.CaptureFixture[str], *, quiet: bool) -> None:
    def look() -> OperationView | None:
        raise AssertionError("nobody is to be asked")

    with working("pausing a", quiet=quiet, look=look):
        pass
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
