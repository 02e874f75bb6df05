"""The demo's programs as commands and as a configuration that the product itself reads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from kybernate.demo.fleet import PORT, TRAINING, Fleet
from kybernate.model.types import GIB, MIB, WorkloadName
from kybernate.settings import parse
from kybernate.settings.specs import Kind, served_of

pytestmark = pytest.mark.unit

FLEET = Fleet(simulated=True, models=("a", "b"), model_bytes=64 * MIB, training_bytes=96 * MIB, training_steps=7)


def test_it_wants_all_at_once() -> None:
    assert FLEET.wanted_bytes == 2 * 64 * MIB + 96 * MIB


def test_each_server_has_its_name_its_size_and_weights_of_its_own() -> None:
    command = FLEET.server("b", port=9)
    assert command[1:5] == ["-m", "kybernate.demo.server", "--name", "b"]
    assert command[command.index("--port") + 1] == "9"
    assert command[command.index("--bytes") + 1] == str(64 * MIB)
    assert command[command.index("--seed") + 1] == "2"
    assert FLEET.server("a")[-1] == "1"


@pytest.mark.parametrize(("simulated", "program"), [(True, "server"), (False, "torch_server")])
def test_with_a_gpu_they_are_real_transformers(program: str, *, simulated: bool) -> None:
    assert replace(FLEET, simulated=simulated).server("a")[2] == f"kybernate.demo.{program}"


def test_a_pace_is_only_for_what_is_simulated_or_wants_one() -> None:
    slow = replace(FLEET, seconds_per_token=0.25, training_pace=0.5)
    assert slow.server("a")[-2:] == ["--seconds-per-token", "0.25"]
    assert "--seconds-per-token" not in replace(slow, simulated=False).server("a")
    assert slow.training()[-2:] == ["--pace", "0.5"]
    assert "--pace" not in slow.training(paced=False)
    assert "--pace" not in FLEET.training()


def test_its_sections_are_a_configuration() -> None:
    text = yaml.safe_dump(FLEET.sections(listen="127.0.0.1:8080", serving={"policy": "fifo"}, hold_s=30.0))
    settings = parse(text, origin="demo")
    served = served_of(settings)
    assert {name: each.kind for name, each in served.items()} == {"a": Kind.MODEL, "b": Kind.MODEL, TRAINING: Kind.JOB}
    model = served[WorkloadName("a")]
    assert model.eager
    assert model.vram == (64 * MIB,)
    assert model.endpoint is not None
    assert (model.endpoint.port, model.endpoint.limits.hold_s) == (PORT, 30.0)
    assert list(model.program.argv) == FLEET.server("a")
    assert settings.serving.policy == "fifo"


def test_it_says_what_it_is() -> None:
    assert str(replace(FLEET, model_bytes=24 * GIB, training_bytes=10 * GIB)) == (
        "2 model servers of 24.0 GiB and a training job of 10.0 GiB"
    )
