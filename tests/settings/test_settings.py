"""kybernate.yaml: sizes, defaults, and errors in one line that point at the line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kybernate.model.errors import BadInput
from kybernate.model.types import GIB, MIB
from kybernate.settings import Settings, load, parse

pytestmark = pytest.mark.unit

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n"
    for before, name in zip("abcdefghij", "bcdefghijk", strict=True)
)
"""Ten lines that stand for ten thousand million values."""


def test_everything_left_out_is_the_default() -> None:
    assert parse("", origin="k.yaml") == parse("agent: {}", origin="k.yaml") == Settings()


def test_a_whole_file() -> None:
    text = "agent:\n  state_dir: /run/x\n  pool: {size: 40GiB}\n  vram: {limit: 30 GiB, reserve: 0}\n  extent_size: 64MiB\n"
    agent = parse(text, origin="k.yaml").agent
    assert (agent.state_dir, agent.pool.size, agent.vram.limit, agent.vram.reserve) == (
        Path("/run/x"),
        40 * GIB,
        30 * GIB,
        0,
    )
    assert agent.extent_size == 64 * MIB


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        pytest.param("agent:\n  pool:\n    size: 40 apples\n", 3, "no size", id="no size"),
        pytest.param("agent:\n  pool: {size: -4GiB}\n", 2, "no size", id="negative"),
        pytest.param("agent:\n  pool: {size: 1}\n", 2, "at least 64.0 MiB, not 1", id="too small"),
        pytest.param("agent:\n  pool: {size: 999999TiB}\n", 2, "at most 64.0 TiB", id="too large"),
        pytest.param("agent:\n  extent_size: 65MiB\n", 2, "multiple of 2 MiB", id="odd extent"),
        pytest.param("agent:\n  extent_size: 1TiB\n", 2, "at most 1.0 GiB", id="huge extent"),
        pytest.param("agent:\n\n  pol: {}\n", 3, "did you mean `pool`?", id="typing error"),
        pytest.param("agent: [", 1, "YAML", id="broken"),
        pytest.param("\tagent: 1", 1, "YAML", id="tab"),
        pytest.param("- agent", 1, "mapping", id="list"),
        pytest.param("agent:\n  api: {}\n  api: {}\n", 3, "twice", id="twice"),
        pytest.param("agent:\n  arbiter:\n    depth: shallow\n", 3, "'warm' or 'zero'", id="depth"),
        pytest.param(BOMB, 6, "written out", id="anchors of anchors"),
        pytest.param(f"{BOMB}models: {{a: {{command: *k}}}}", 6, "written out", id="anchors of anchors, used"),
        pytest.param("agent: 1\nmodels: &m\n  a: *m\n", 2, "contains itself", id="an endless anchor"),
        pytest.param("agent: " + "[" * 3000, 1, "nested too deeply", id="deep"),
        pytest.param("models: {a: {port: " + "9" * 5000 + "}}", 1, "digits", id="a number without end"),
        pytest.param("models: {a: {command: x, port: 2020-02-30}}", 1, "no valid YAML", id="no such day"),
        pytest.param("models:\n  ../a: {command: x, port: 1}\n", 2, "no name", id="a way out"),
        pytest.param("a: !!python/object/apply:os.system [id]", 1, "no valid YAML", id="a call"),
        pytest.param("agent: 3", 1, "a mapping", id="number"),
        pytest.param("agent:\n  store:\n    object: {url: 'ftp://x'}\n", 3, "s3://", id="no such store"),
        pytest.param("agent:\n  store:\n    object: {endpoint: 'x:1'}\n", 3, "http://", id="no server"),
        pytest.param("agent:\n  store: {directory: a/b}\n", 2, "absolute", id="relative directory"),
        pytest.param("agent:\n  store: {directory: /a/../b}\n", 2, "absolute", id="path with .."),
        pytest.param("agent:\n  store: {tenant: A}\n", 2, "tenant name", id="tenant"),
        pytest.param("agent:\n  store:\n    demote: {idle: 0}\n", 3, "at least 1, not 0", id="idle at once"),
        pytest.param(
            "agent:\n  store:\n    encryption: {key_file: /k, key_command: [k]}\n", 3, "not both", id="two keys"
        ),
    ],
)
def test_an_error_is_one_line_with_file_and_line(text: str, where: int, words: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse(text, origin="k.yaml")
    message = str(caught.value)
    assert message.startswith(f"k.yaml:{where}: ")
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "text",
    [
        "models: {a: {command: [x], port: true}}",
        "models: {a: {command: [x], port: 8000, priority: false}}",
        "agent: {api: {connections: true}}",
        "activator: {workers: true}",
        "serving: {stay: false}",
        "agent: {arbiter: {wait_limit: false}}",
        "agent: {pool: {size: true}}",
    ],
)
def test_true_and_false_are_no_numbers(text: str) -> None:
    with pytest.raises(BadInput, match=r"(?i)(true|false) is no (number|time|size)"):
        parse(text, origin="f")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="No such file"):
        load(tmp_path / "none.yaml")


@given(st.text(max_size=200))
@example("a\\nb: 1")
@example('"a\\nk": 1')
def test_any_text_is_settings_or_a_line_for_each_error(text: str) -> None:
    message = "k.yaml:1"
    try:
        parse(text, origin="k.yaml")
    except BadInput as e:
        message = str(e)
    assert all(line.startswith("k.yaml:") for line in message.split("\n"))
