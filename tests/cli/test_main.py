"""What the command line makes of words before any command has them: help, mistakes in one line, `--simulated` alone."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from kybernate import __version__
from kybernate.cli import main as module
from kybernate.cli.foreign import hint_for, words
from kybernate.cli.main import COMMANDS, main

pytestmark = pytest.mark.unit

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def ask(*tokens: str) -> tuple[int, str, str]:
        status = main(tokens)
        said = capsys.readouterr()
        return status, said.out, said.err

    return ask


@pytest.mark.parametrize("tokens", [(), ("-h",), ("--help",), ("help",)])
def test_without_a_command_help_names_all_of_them(run: Run, tokens: tuple[str, ...]) -> None:
    status, out, err = run(*tokens)
    assert (status, err) == (0, "")
    for name, _, text in COMMANDS:
        assert f"  {name:<12}{text}\n" in out


def test_the_version_needs_no_agent(run: Run) -> None:
    assert run("--version") == (0, f"{__version__}\n", "")


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (("paus",), "no such command: paus (did you mean pause?)"),
        (("run", "--", "true"), "run takes a name in front of the `--` (kybernate run NAME -- PROGRAM ...)"),
        (("run", "x", "-5", "--", "true"), "Unknown option: -5 (`kybernate run --help` shows how)"),
        (
            ("run", "x", "-.5", "ls"),
            "Unknown option: -.5 (what belongs to the program goes behind `--`: kybernate run NAME -- PROGRAM ...)",
        ),
    ],
)
def test_a_mistake_is_one_line_with_the_way_to_do_it(run: Run, tokens: tuple[str, ...], message: str) -> None:
    assert run(*tokens) == (2, "", f"kybernate: {message}\n")


def test_for_a_program_a_mistake_is_one_json_document(run: Run) -> None:
    status, out, err = run("paus", "--json")
    assert (status, out) == (2, "")
    assert json.loads(err) == {"code": "bad_input", "message": "no such command: paus", "hint": "did you mean pause?"}
    _, _, plain = run("run", "--", "true", "--json")
    assert plain.startswith("kybernate: "), "behind `--` it is the program's"


def test_a_word_tells_the_terminal_nothing(run: Run) -> None:
    _, _, err = run("x\x1b[31m\r" + "y" * 500)
    assert "\x1b" not in err
    assert "\r" not in err
    assert len(err) < 300


def test_a_number_behind_the_dashes_is_the_programs() -> None:
    assert module._option_behind_name(["run", "x", "--", "nice", "-5"]) is None
    assert module._option_behind_name(["stop", "x", "-5"]) is None
    assert module._option_behind_name(["run", "x", "-5x"]) == "Unknown option: -5x"


@pytest.mark.parametrize(
    ("tokens", "read"),
    [
        (["up", "--simulated"], ["up", "--simulated=8GiB"]),
        (["up", "--simulated", "16GiB"], ["up", "--simulated", "16GiB"]),
        (["up", "--simulated", "--json"], ["up", "--simulated=8GiB", "--json"]),
        (["up", "--simulated=1GiB"], ["up", "--simulated=1GiB"]),
        (["bench", "pause", "--simulated"], ["bench", "pause", "--simulated=8GiB"]),
        (["run", "x", "--", "y", "--simulated"], ["run", "x", "--", "y", "--simulated"]),
        (["up", "--", "--simulated"], ["up", "--", "--simulated"]),
        ([], []),
    ],
)
def test_a_simulated_gpu_has_a_size_also_where_none_is_said(tokens: list[str], read: list[str]) -> None:
    assert module._with_default_size(list(tokens)) == read


@pytest.mark.parametrize(
    ("text", "line"), [("  a\n   b \t c. ", "a b c"), ("Error...", "Error"), ("", ""), ("one line", "one line")]
)
def test_whatever_a_library_says_is_one_line(text: str, line: str) -> None:
    assert module._one_line(text) == line


# -- words of other tools ------------------------------------------------------------------------------------------------

KNOWN = [name for name, _, _ in COMMANDS]


@pytest.mark.parametrize(
    ("word", "ours"),
    [
        ("ls", "kybernate ps"),
        ("LS", "kybernate ps"),
        ("kill", "kybernate stop"),
        ("unfreeze", "kybernate resume"),
        ("sbatch", "kybernate run"),
    ],
)
def test_a_word_typed_from_habit_is_answered_with_ours(word: str, ours: str) -> None:
    assert f"`{ours}" in hint_for(word, KNOWN)


def test_our_own_command_mistyped_comes_before_a_word_of_another_tool() -> None:
    assert hint_for("resme", KNOWN) == "did you mean resume?"
    assert "`kybernate stop" in hint_for("scancell", KNOWN), "mistyped as well"
    assert hint_for("xyzzy", KNOWN) == "`kybernate --help` lists the commands"
    assert hint_for("", KNOWN) == "`kybernate --help` lists the commands"


def test_no_command_of_ours_is_among_the_words_of_others() -> None:
    """It would never be answered, and says that somebody renamed a command."""
    assert not words() & {*KNOWN, "bench"}


def test_every_answer_names_commands_that_there_are() -> None:
    for word in words():
        named = [part.split()[1] for part in hint_for(word, KNOWN).split("`")[1::2]]
        assert named, word
        assert set(named) <= {*KNOWN, "bench"}, word
