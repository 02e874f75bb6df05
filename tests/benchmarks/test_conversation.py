"""What a benchmark's workload says: its output read as it grows, in whole lines, and what ends the waiting for one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.benchmarks.conversation import Output, until
from kybernate.model.errors import KybernateError, WorkloadLost

pytestmark = pytest.mark.unit


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "bench" / "output.log"
    path.parent.mkdir()
    return path


def more(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_an_output_that_is_not_there_yet_has_no_lines(log: Path) -> None:
    output = Output(log)
    assert output.lines() == []
    assert output.last("x") is None
    assert output.steps() == -1
    assert output.tail() == ""


def test_half_a_line_is_none_until_its_end_is_there(log: Path) -> None:
    output = Output(log)
    more(log, "ready pid=1\nstep 4")
    assert output.lines() == ["ready pid=1"]
    assert output.steps() == -1, "it may become step 42"
    more(log, "2\n")
    assert output.lines() == ["ready pid=1", "step 42"]
    assert output.steps() == 42


@given(text=st.text(st.sampled_from("ab\n é"), max_size=40), cuts=st.lists(st.integers(0, 60), max_size=5))
def test_in_whatever_pieces_it_is_read_the_lines_are_the_same(
    text: str, cuts: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("o") / "output.log"
    output = Output(path)
    places = sorted({0, *(cut for cut in cuts if cut < len(text)), len(text)})
    for begin, end in zip(places, places[1:], strict=False):  # noqa: RUF007 - of a single place there are no pieces
        more(path, text[begin:end])
        output.lines()
    assert output.lines() == text.split("\n")[:-1]


def test_the_last_of_a_kind_and_the_end_of_all(log: Path) -> None:
    output = Output(log)
    more(log, "".join(f"step {number}\n" for number in range(10)) + "done 1 ok\n")
    assert output.last("step ") == "step 9"
    assert output.last("st") == "step 9"
    assert output.tail(2) == "step 9 | done 1 ok"
    more(log, "x" * 2000 + "\n")
    assert len(output.tail()) == 600


def test_the_first_line_that_begins_so_is_what_was_waited_for(log: Path) -> None:
    more(log, "done 1 a\ndone 10 b\ndone 1 c\n")
    assert Output(log).wait("done 1 ", timeout_s=5) == "done 1 a"
    assert Output(log).wait("done 10 ", timeout_s=5) == "done 10 b"


def test_steps_are_waited_for_up_to_a_number(log: Path) -> None:
    more(log, "step 5\n")
    assert Output(log).wait_steps(5, timeout_s=5) == 5
    with pytest.raises(KybernateError, match="no step 6 within 0 s"):
        Output(log).wait_steps(6, timeout_s=0)


def test_a_mismatch_ends_the_waiting_at_once_and_is_told(log: Path) -> None:
    more(log, "step 1\nMISMATCH at word 7\n")
    with pytest.raises(WorkloadLost, match="bench: MISMATCH at word 7"):
        Output(log).wait("done", timeout_s=60)


def test_what_was_said_before_an_end_is_not_missed_and_an_end_is_told_with_the_last_words(log: Path) -> None:
    more(log, "done 1 ok\n")
    assert Output(log, alive=lambda: False).wait("done 1", timeout_s=60) == "done 1 ok"
    with pytest.raises(WorkloadLost, match="bench ended before 'done 2': done 1 ok"):
        Output(log, alive=lambda: False).wait("done 2", timeout_s=60)


def test_whoever_keeps_silent_is_told_with_its_last_lines(log: Path) -> None:
    more(log, "a\nb\n")
    with pytest.raises(KybernateError, match="bench: no 'done' within 0 s") as caught:
        Output(log).wait("done", timeout_s=0)
    assert caught.value.hint == "last lines: a | b"


def test_until_looks_once_at_least_and_gives_what_it_found() -> None:
    assert until(lambda: 7, timeout_s=0, what="it") == 7
    looks = iter([None, 0, "", "there"])
    assert until(lambda: next(looks), timeout_s=5, what="it", every_s=0) == "there"
    began = time.monotonic()
    with pytest.raises(KybernateError, match=r"the resume did not happen within 0\.05 s"):
        until(lambda: None, timeout_s=0.05, what="the resume")
    assert time.monotonic() - began >= 0.05
