"""The words of the command line: what a person types from habit, mistypes, or knows from other tools."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.test_command_line import kybernate

pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize(
    "words",
    [
        ["pause", "x", "--timeout", "1h30m"],
        ["resume", "x", "--timeout=10m"],
        ["stop", "x", "--grace", "1m"],
        ["clone", "x", "y", "--timeout", "2 min"],
        ["history", "--last", "1h30m"],
        ["snapshot", "x", "--as", "y", "--ready-timeout", "10m"],
    ],
    ids=lambda words: words[0],
)
def test_options_take_times_with_units(tmp_path: Path, words: list[str]) -> None:
    """They are understood: what is missing is the agent."""
    done = kybernate(*words, state=tmp_path)
    assert (done.returncode, "no agent answers" in done.stderr) == (6, True), done.stderr


@pytest.mark.parametrize("given", ["soon", "-5", "30m1h", "nan"])
def test_what_is_no_time_is_refused_with_an_example(tmp_path: Path, given: str) -> None:
    done = kybernate("stop", "x", f"--grace={given}", state=tmp_path)
    assert done.returncode == 2
    assert "--grace" in done.stderr
    assert "is no time" in done.stderr
    assert "1h30m" in done.stderr
    assert done.stderr.count("\n") == 1
