"""Requests refuse what they don't know, in one line that names it; answers ignore it, so that versions may differ."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from kybernate.model import api, api_history, api_serving
from kybernate.model.api import (
    Answer,
    CloneRequest,
    ErrorView,
    EventView,
    ExternalPauseRequest,
    PauseRequest,
    Request,
    ResumeRequest,
    RunRequest,
    SignalRequest,
    SnapshotRequest,
)
from kybernate.model.errors import BadInput
from kybernate.model.types import NAME_HINT, Backend, Depth, TierName

pytestmark = pytest.mark.unit

RUN: dict[str, Any] = {"name": "a", "argv": ["python"], "directory": "/srv"}


def models(kind: type[Any]) -> list[type[Any]]:
    found = {
        value
        for module in (api, api_history, api_serving)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, kind) and value is not kind
    }
    return sorted(found, key=lambda model: model.__name__)


@pytest.mark.parametrize("model", models(Request), ids=lambda model: model.__name__)
def test_every_request_refuses_fields_that_it_does_not_know(model: type[Request]) -> None:
    with pytest.raises(ValidationError, match="surplus"):
        model.model_validate({"surplus": 1})


@pytest.mark.parametrize("model", models(Answer), ids=lambda model: model.__name__)
def test_every_answer_ignores_fields_that_it_does_not_know(model: type[Answer]) -> None:
    assert model.model_config.get("extra") == "ignore"
    assert model.model_config.get("frozen")


def test_defaults_are_what_the_command_line_promises() -> None:
    assert PauseRequest() == PauseRequest(depth=Depth.ZERO, timeout_s=30.0, tier=TierName.RAM, connections=None)
    run = RunRequest(**RUN)
    assert (run.backend, run.network, run.isolated, run.layers, run.cold_start) == (
        Backend.BROKER,
        "none",
        None,
        [],
        False,
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        pytest.param({"name": "Not-A-Label"}, "bad workload name 'Not-A-Label'", id="a name"),
        pytest.param({"argv": []}, "argv: '[]' List should have at least 1 item", id="nothing to run"),
        pytest.param({"argv": ["a\x00b"]}, "argv.0: ", id="NUL in an argument"),
        pytest.param({"directory": "srv"}, "directory: 'srv'", id="a relative directory"),
        pytest.param({"environment": {"A": 1}}, "environment.A: '1'", id="a number where a text belongs"),
        pytest.param({"network": "bridge"}, "network: 'bridge'", id="an unknown network"),
        pytest.param({"isolated": "yes"}, "isolated: 'yes'", id="a flag that is a word"),
        pytest.param({"cold_start": 1}, "cold_start: '1'", id="a flag that is a number"),
        pytest.param({"layers": ["models"]}, "layers.0: 'models'", id="a relative layer"),
        pytest.param({"layers": ["/m"] * 65}, "layers: ", id="too many layers"),
        pytest.param({"backend": "magic"}, "backend: 'magic'", id="an unknown backend"),
    ],
)
def test_a_senseless_run_is_one_line_that_names_the_field(given: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput) as refused:
        RunRequest.of(**(RUN | given))
    assert refused.value.message.startswith(words)
    assert "\n" not in refused.value.message


def test_a_bad_name_comes_with_the_hint_and_says_whose() -> None:
    with pytest.raises(BadInput) as refused:
        SnapshotRequest.of(image="UPPER")
    assert (refused.value.message, refused.value.hint) == ("bad image name 'UPPER'", NAME_HINT)


@pytest.mark.parametrize("seconds", [-0.001, 86400.001, float("inf"), float("nan"), "30", True])
def test_a_time_is_a_number_of_seconds_up_to_a_day(seconds: object) -> None:
    with pytest.raises(BadInput, match=r"^timeout: "):
        ResumeRequest.of(timeout_s=seconds)


@pytest.mark.parametrize("seconds", [0, 0.0, 86400])
def test_the_borders_of_a_time_are_times(seconds: float) -> None:
    assert ResumeRequest.of(timeout_s=seconds).timeout_s == seconds


@pytest.mark.parametrize(
    ("count", "good"), [(0, False), (1, True), (1000, True), (1001, False), (2.0, False), (True, False)]
)
def test_a_thousand_clones_at_once_at_most(count: object, good: bool) -> None:
    if good:
        assert CloneRequest.of(name="a", count=count).count == count
    else:
        with pytest.raises(BadInput, match=r"^count: "):
            CloneRequest.of(name="a", count=count)


@pytest.mark.parametrize("pid", [-1, 0, 1, 1 << 22, "12", 12.5])
def test_init_is_no_process_to_pause_nor_is_what_linux_never_hands_out(pid: object) -> None:
    with pytest.raises(BadInput, match=r"^pid: "):
        ExternalPauseRequest.of(pid=pid)


def test_only_signals_that_a_program_can_act_on_are_passed_on() -> None:
    assert SignalRequest.of(signal="SIGUSR1").signal == "SIGUSR1"
    for name in ("SIGKILL", "SIGSTOP", "sigusr1", "10"):
        with pytest.raises(BadInput, match=r"^signal: "):
            SignalRequest.of(signal=name)


def test_an_answer_of_a_newer_agent_is_read() -> None:
    assert ErrorView.model_validate({"code": "busy", "message": "m", "retry": 3}) == ErrorView(code="busy", message="m")


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        pytest.param("paused", "paused in 0.84 s", "paused in 0.84 s", id="the text begins with its kind"),
        pytest.param(
            "pause-refused", "requests are in flight", "pause-refused: requests are in flight", id="it doesn't"
        ),
        pytest.param("paused", "pausedly", "paused: pausedly", id="a longer word is another one"),
        pytest.param("lost", "lost", "lost: lost", id="the kind alone says nothing"),
    ],
)
def test_an_event_says_its_kind_once(kind: str, text: str, said: str) -> None:
    assert EventView(id=1, time=0.0, workload=None, kind=kind, text=text).said == said
