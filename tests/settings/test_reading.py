"""kybernate.yaml as a person writes it: times with units, all errors at once, templates, names that aren't keys."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

import pytest

from kybernate.model.errors import BadInput
from kybernate.settings import Settings, parse, schema
from kybernate.settings.values import Seconds, Section

pytestmark = pytest.mark.unit

PROGRAM = "command: x, port: 1"


READS_TIMES = typing.get_args(Seconds)[1].func


def is_time(annotation: Any) -> bool:
    """By what reads it, wherever in the type that stands: `off` or a list besides is fine."""
    return getattr(annotation, "func", None) is READS_TIMES or any(map(is_time, typing.get_args(annotation)))


def times(section: type[Section], *place: str) -> Iterator[tuple[str, ...]]:
    """Every setting that is a time."""
    for name, field in section.model_fields.items():
        here = (*place, field.alias or name)
        inner: Any = field.annotation
        if typing.get_origin(inner) is dict:
            inner, here = typing.get_args(inner)[1], (*here, "one")
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from times(inner, *here)
        elif any(map(is_time, (field.annotation, *field.metadata))):
            yield here


EVERY_TIME = [".".join(place) for place in times(Settings)]


def at(place: str, value: str) -> str:
    """A file that sets only this."""
    said = value
    for word in reversed(place.split(".")):
        more = f", {PROGRAM}" if word == "one" and place.startswith("models") else ""
        more = ", command: x" if word == "one" and place.startswith("jobs") else more
        said = f"{{{word}: {said}}}" if word != "one" else f"{{one: {{{said[1:-1]}{more}}}}}"
    return said


def test_there_are_times_in_every_section() -> None:
    assert {place.partition(".")[0] for place in EVERY_TIME} == {"agent", "models", "jobs", "activator", "serving"}
    assert len(EVERY_TIME) >= 20


@pytest.mark.parametrize("place", EVERY_TIME)
def test_every_time_takes_units(place: str) -> None:
    assert parse(at(place, "1m30s"), origin="k.yaml") == parse(at(place, "90"), origin="k.yaml")
    with pytest.raises(BadInput, match=f"{place}.*'soon' is no time.*10m or 1h30m"):
        parse(at(place, "soon"), origin="k.yaml")


def refusal(text: str) -> list[str]:
    with pytest.raises(BadInput) as caught:
        parse(text, origin="k.yaml")
    return str(caught.value).split("\n")


def test_all_errors_of_a_file_are_said_at_once() -> None:
    said = refusal(
        "serving: {policy: best}\n"
        "agent:\n"
        "  pool: {size: 1}\n"
        "  pol: 3\n"
        "models:\n"
        "  chat: {komand: x, port: 99999, port: 8000}\n"
        "  code: {command: x, vram: [1GiB, soon], hosts: ['a b', c]}\n"
        "jobs:\n"
        "  train: {command: x, schedule: never}\n"
        "unknown: 1\n"
    )
    assert [line.split(": ")[:2] for line in said] == [
        ["k.yaml:1", "serving.policy"],
        ["k.yaml:3", "agent.pool.size"],
        ["k.yaml:4", "agent.pol"],
        ["k.yaml:6", "'port' is set twice"],
        ["k.yaml:6", "models.chat.komand"],
        ["k.yaml:7", "models.code.vram.1"],
        ["k.yaml:7", "models.code.port"],
        ["k.yaml:7", "models.code.hosts.0"],
        ["k.yaml:9", "jobs.train.schedule"],
        ["k.yaml:10", "unknown"],
    ], "each once, in the file's order; a mistyped setting isn't missing, too"


def test_contradictions_are_said_at_once() -> None:
    said = refusal(
        "models:\n"
        f"  a: {{{PROGRAM}, names: [x], lowest_tier: object}}\n"
        f"  b: {{{PROGRAM}, names: [x]}}\n"
        "jobs:\n"
        "  b: {command: x}\n"
    )
    assert [line.split(": ")[:2] for line in said] == [
        ["k.yaml:2", "models.a.lowest_tier"],
        ["k.yaml:3", "models.b.names.0"],
        ["k.yaml:5", "jobs.b"],
    ]


def test_hundreds_of_errors_are_a_screenful() -> None:
    said = refusal("".join(f"wrong-{i}: 1\n" for i in range(100)))
    assert len(said) == 21
    assert said[-1] == "k.yaml: 80 more errors"


TEMPLATES = """
x-server: &server
  port: 8000
  environment: &env {A: 1}
x-anything: [1, two]
models:
  a: {<<: *server, command: serve a}
  b:
    <<: *server
    command: serve b
    environment: {<<: *env, B: 2}
"""


def test_templates_under_keys_of_ones_own() -> None:
    settings = parse(TEMPLATES, origin="k.yaml")
    assert {name: model.port for name, model in settings.models.items()} == {"a": 8000, "b": 8000}
    assert settings.models["b"].environment == {"A": "1", "B": "2"}
    assert "^x-" in schema()["patternProperties"]


def test_what_is_wrong_in_a_template_is_shown_there() -> None:
    assert refusal(TEMPLATES.replace("port: 8000", "port: 0")) == [
        "k.yaml:3: models.a.port: must be at least 1, not 0",
        "k.yaml:3: models.b.port: must be at least 1, not 0",
    ]


def test_keys_of_ones_own_are_so_at_the_top_only() -> None:
    [said] = refusal(f"models:\n  a: {{{PROGRAM}, x-mine: 1}}\n")
    assert said.startswith("k.yaml:2: models.a.x-mine: no such setting")


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("Qwen/Qwen3-8B", "qwen3-8b"),
        ("GPT-4o", "gpt-4o"),
        ("qwen2.5:7b", "qwen2-5-7b"),
        ("meta-llama/Llama_3", "llama-3"),
    ],
)
def test_a_models_full_name_as_a_key_leads_to_names(key: str, name: str) -> None:
    [said] = refusal(f"models:\n  {key}: {{{PROGRAM}}}\n")
    assert said.startswith(f"k.yaml:2: models.{key}: {key!r} is no name: use small letters")
    assert said.endswith(f"; call it `{name}` and let requests ask for it as ever with `names: [{key}]`")
    assert parse(f"models:\n  {name}: {{{PROGRAM}, names: [{key}]}}\n", origin="k.yaml").models[name].names == (key,)


def test_a_jobs_name_has_no_other_names() -> None:
    [said] = refusal("jobs:\n  Train/Nightly: {command: x}\n")
    assert said.endswith("; `nightly` would be one")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("cmd: x", "command"),
        ("ttl: 300", "idle"),
        ("aliases: [a]", "names"),
        ("env: {}", "environment"),
        ("cwd: /", "directory"),
    ],
)
def test_a_setting_of_another_tool_is_answered_with_ours(theirs: str, ours: str) -> None:
    said = refusal(f"models:\n  a: {{port: 1, {theirs}{'' if ours == 'command' else ', command: x'}}}\n")
    assert len(said) == 1, "what is called otherwise isn't missing, too"
    assert said[0].endswith(f"no such setting (did you mean `{ours}`?)")
