"""The words of the command line: what a person types from habit, mistypes, or knows from other tools."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.cli.test_command_line import kybernate

from kybernate.cli import foreign, main

pytestmark = pytest.mark.timeout(300)


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


@pytest.mark.parametrize(
    ("words", "says"),
    [
        pytest.param(["--unknown", "a", "--", "true"], "Unknown option: --unknown", id="unknown"),
        pytest.param(["--wiat", "--", "true"], "Did you mean --wait?", id="mistyped"),
        pytest.param(["--unknown=3", "--", "true"], "Unknown option: --unknown", id="with a value"),
        pytest.param(["-z", "--", "true"], "Unknown option: -z", id="a letter"),
        pytest.param(["-5", "--", "true"], "Unknown option: -5", id="a number"),
        pytest.param(["ls", "-l"], "behind `--`: kybernate run NAME -- PROGRAM", id="of a program, without --"),
        pytest.param(["nice", "-5", "ls"], "behind `--`: kybernate run NAME -- PROGRAM", id="a number, without --"),
    ],
)
def test_run_takes_no_option_for_the_program(tmp_path: Path, words: list[str], says: str) -> None:
    done = kybernate("run", "x", *words, state=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert says in done.stderr


@pytest.mark.parametrize("behind", [["ls", "-l", "--json"], ["--odd-program", "-5"], ["true", "--", "x"]])
def test_what_is_behind_the_dashes_is_the_programs(tmp_path: Path, behind: list[str]) -> None:
    done = kybernate("run", "x", "--", *behind, state=tmp_path)
    assert (done.returncode, "no agent answers" in done.stderr) == (6, True), done.stderr


@pytest.mark.parametrize(
    ("word", "ours"),
    [
        ("status", "`kybernate ps`"),
        ("list", "`kybernate ps`"),
        ("ls", "`kybernate ps`"),
        ("unload", "`kybernate pause NAME`"),
        ("restart", "`kybernate stop NAME` and `kybernate start NAME`"),
        ("kill", "`kybernate stop NAME`"),
        ("log", "`kybernate logs NAME -f`"),
        ("inspect", "`kybernate explain NAME`"),
        ("serve", "`kybernate up`"),
        ("Images", "`kybernate snapshots`"),
        ("unlaod", "`kybernate pause NAME`"),
    ],
)
def test_a_word_of_another_tool_is_answered_with_ours(tmp_path: Path, word: str, ours: str) -> None:
    done = kybernate(word, "x", state=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"kybernate: no such command: {word} (")
    assert ours in done.stderr


def test_the_words_of_other_tools_lead_to_commands_that_there_are() -> None:
    known = {name for name, _, _ in main.COMMANDS} | {"bench"}
    assert not foreign.words() & known
    for word in foreign.words():
        named = re.findall(r"`kybernate ([a-z-]+)", foreign.hint_for(word, sorted(known)))
        assert named, word
        assert set(named) <= known, word
