"""Requests as lines of a trace: what is written can be simulated, and a disk that can't be written costs lines alone."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from kybernate.proxy import recording
from kybernate.proxy.recording import Recorder

pytestmark = pytest.mark.unit


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_says_when_it_was_asked_for_and_how_long_the_model_worked(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "trace.jsonl")
    before = time.time()
    recorder.answered("a", arrived=100.0, forwarded=103.0, now=104.25)
    recorder.flush()
    (line,) = lines(recorder.path)
    assert (line["model"], line["seconds"]) == ("a", 1.25), "waiting isn't work"
    at = line["at_s"]
    assert isinstance(at, float)
    assert before - 4.25 - 0.01 <= at <= time.time() - 4.25 + 0.01, "by the wall's clock"


def test_lines_are_appended_and_written_once(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "trace.jsonl")
    for model in ("a", "b"):
        recorder.answered(model, arrived=0, forwarded=0, now=1)
        recorder.flush()
        recorder.flush()
    assert [line["model"] for line in lines(recorder.path)] == ["a", "b"]


def test_a_file_that_was_moved_away_is_begun_anew(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "trace.jsonl")
    recorder.answered("a", arrived=0, forwarded=0, now=1)
    recorder.flush()
    recorder.path.rename(tmp_path / "yesterday")
    recorder.answered("b", arrived=0, forwarded=0, now=1)
    recorder.flush()
    assert [line["model"] for line in lines(recorder.path)] == ["b"]
    assert recorder.path.stat().st_mode & 0o077 == 0, "who asked for what is nobody else's business"


def test_nothing_is_made_where_there_is_nothing_to_write(tmp_path: Path) -> None:
    Recorder(tmp_path / "trace.jsonl").flush()
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_not_followed_and_a_failure_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "trace.jsonl").symlink_to(tmp_path / "elsewhere")
    recorder = Recorder(tmp_path / "trace.jsonl")
    for _ in range(3):
        recorder.answered("a", arrived=0, forwarded=0, now=1)
        recorder.flush()
    assert not (tmp_path / "elsewhere").exists()
    assert capsys.readouterr().out.count("requests can't be recorded") == 1


def test_a_disk_that_does_not_answer_costs_no_memory_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "_LINES_MAX", 3)
    recorder = Recorder(tmp_path / "trace.jsonl")
    for _ in range(10):
        recorder.answered("a", arrived=0, forwarded=0, now=1)
    recorder.flush()
    assert len(lines(recorder.path)) == 3
