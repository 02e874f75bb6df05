"""What a configuration would do, before there is an agent with it."""

from __future__ import annotations

import pytest

from kybernate.agent.serving.dryrun import rehearse
from kybernate.model.types import GIB, GpuUuid, WorkloadName
from kybernate.policy.registry import policy_named
from kybernate.policy.settings import PolicySettings
from kybernate.settings import parse
from kybernate.settings.specs import served_of
from kybernate.settings.vram_hints import hinted

pytestmark = pytest.mark.unit

YAML = """
models:
  a: {command: x, port: 1, vram: 24GiB}
  b: {command: x, port: 1, vram: 24GiB}
  c: {command: x, port: 1, vram: 40GiB}
  e: {command: x, port: 1, vram: 90GiB}
  unknown: {command: x, port: 1}
jobs:
  train: {command: x, vram: 30GiB}
"""
GPUS = [GpuUuid(f"GPU-{letter}") for letter in "abc"]


def test_the_dry_run_says_who_would_be_paused_for_whom() -> None:
    served = served_of(parse(YAML, origin="k.yaml"))
    gpu = GpuUuid("GPU-0")
    needs = {name: hints for name, each in served.items() if (hints := hinted(each, [gpu], None))}
    steps = rehearse(
        served,
        policy=policy_named("lru"),
        numbers=PolicySettings(),
        capacity={gpu: 60 * GIB},
        needs=needs,
        now=1_700_000_000.0,
    )
    found = {
        step.asked: (step.came, [getattr(action, "victims", ()) for action in step.plan.actions]) for step in steps
    }
    assert found == {
        None: (True, [()]),
        "a": (True, [()]),
        "b": (True, [("train",)]),
        "c": (True, [("a", "b")]),
        "e": (False, []),
    }
    assert "more than this node" in steps[-1].plan.reasons[WorkloadName("e")]


def test_the_dry_run_begins_with_eager_models() -> None:
    text = (
        "models:\n"
        "  a: {command: x, port: 1, vram: 20GiB, start: eager}\n"
        "  b: {command: x, port: 1, vram: 20GiB}\n"
        "jobs:\n  train: {command: x, vram: 50GiB}\n"
    )
    gpu = GpuUuid("GPU-0")
    served = served_of(parse(text, origin="k.yaml"))
    steps = rehearse(
        served,
        policy=policy_named("balanced"),
        numbers=PolicySettings(),
        capacity={gpu: 60 * GIB},
        needs={name: hinted(each, [gpu], None) for name, each in served.items()},
        now=1_700_000_000.0,
    )
    first, asked_a, asked_b = steps
    assert [action.name for action in first.plan.actions] == ["a"]
    assert first.plan.reasons.keys() == {"train"}
    assert not asked_a.plan.actions, "it is there already"
    assert [action.name for action in asked_b.plan.actions] == ["b"]


def test_a_model_on_two_gpus_makes_room_on_both_and_one_for_three_fits_nowhere() -> None:
    text = """
models:
  left: {command: x, port: 1, vram: 40GiB}
  right: {command: x, port: 1, vram: [0, 40GiB]}
  both: {command: x, port: 1, vram: [30GiB, 30GiB]}
  three: {command: x, port: 1, vram: [1GiB, 1GiB, 1GiB]}
"""
    served = served_of(parse(text, origin="k.yaml"))
    steps = rehearse(
        served,
        policy=policy_named("lru"),
        numbers=PolicySettings(),
        capacity=dict.fromkeys(GPUS[:2], 60 * GIB),
        needs={name: hinted(each, GPUS[:2], None) for name, each in served.items()},
        now=1_700_000_000.0,
    )
    victims = {
        step.asked: [v for action in step.plan.actions for v in getattr(action, "victims", ())] for step in steps
    }
    assert (victims[WorkloadName("right")], sorted(victims[WorkloadName("both")])) == ([], ["left", "right"])
    assert [step.came for step in steps] == [True, True, True, True, False]
