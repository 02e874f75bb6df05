"""`kybernate check --dry-run` in sentences, without an agent: who would be paused for whom."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kybernate.cli.common import Common
from kybernate.cli.rehearsal import rehearsal
from kybernate.model.errors import BadInput
from kybernate.settings import Settings, parse

MODELS = """
models:
  one: {command: [serve], directory: /srv, port: 8000, vram: 40GiB, start: eager}
  two: {command: [serve], directory: /srv, port: 8001, vram: 40GiB}
  three: {command: [serve], directory: /srv, port: 8002}
activator: {listen: "127.0.0.1:8080"}
"""


def settings(text: str = MODELS) -> Settings:
    return parse(text, origin="k.yaml")


def rehearsed(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    *,
    vram: str | None = "60GiB",
    json: bool = False,
    text: str = MODELS,
) -> str:
    rehearsal(settings(text), vram=vram, common=Common(json=json, state_dir=tmp_path))
    return capsys.readouterr().out


def test_each_model_is_asked_once_and_what_would_be_done_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = rehearsed(tmp_path, capsys).splitlines()
    assert lines[0] == "with 60.0 GiB of VRAM, policy balanced; nothing is done:"
    assert lines[1] == "at the start:"
    assert lines[2].startswith("one would come")
    assert "a request for one:" in lines
    assert lines[lines.index("a request for one:") + 1] == "one is there already"
    asked = lines.index("a request for two:")
    assert "one would be paused for it" in lines[asked + 1]
    assert lines[-1] == "three: nobody knows what it needs; set its `vram`"


def test_what_fits_nowhere_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = MODELS.replace("vram: 40GiB}", "vram: 90GiB}")
    found = rehearsed(tmp_path, capsys, text=text)
    asked = found.splitlines().index("a request for two:")
    assert "needs more than this node hands out" in found.splitlines()[asked + 1]


def test_as_json_each_step_is_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(rehearsed(tmp_path, capsys, json=True))
    assert found["vram_bytes"] == [60 << 30]
    assert found["unknown"] == ["three"]
    assert [step["asked"] for step in found["steps"]] == [[], ["one"], ["two"]]
    assert all(step["came"] for step in found["steps"])


def test_without_an_agent_somebody_has_to_say_how_much_vram_there_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BadInput, match=r"how much VRAM is there\?") as refused:
        rehearsed(tmp_path, capsys, vram=None)
    assert refused.value.hint == "give --vram SIZE, set agent.vram.limit, or start an agent here"
    said = MODELS + "agent: {vram: {limit: 80GiB}}\n"
    assert rehearsed(tmp_path, capsys, vram=None, text=said).startswith("with 80.0 GiB of VRAM")
