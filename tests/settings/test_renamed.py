"""Old names of settings: read for one version with a warning, refused beside the new one, kept apart from what anchors share."""

from __future__ import annotations

import pytest

from kybernate.doctor.config_lint import advice
from kybernate.model.errors import BadInput
from kybernate.model.types import TierName
from kybernate.settings import parse, schema
from kybernate.settings.renamed import RENAMED

pytestmark = pytest.mark.unit

OLD = """\
x-base: &base {command: /bin/true, lowest: ram}
agent: {arbiter: {quantum: 7}}
models:
  a:
    <<: *base
    port: 1
    limits: {hold: 5, queue: 3}
  b: {command: /bin/true, port: 2, sink: 10m}
jobs:
  train: &train {command: /bin/true, sink: 60}
  other: *train
serving:
  quantum: 3
  max_wait: 20
"""
NEW = (
    OLD.replace("max_wait", "due_after")
    .replace("quantum", "min_run")
    .replace("hold", "max_wait")
    .replace("sink", "demote_after")
    .replace("lowest", "lowest_tier")
)


def test_an_old_name_means_the_new_one() -> None:
    old, new = parse(OLD, origin="k.yaml"), parse(NEW, origin="k.yaml")
    assert old.model_dump() == new.model_dump()
    assert old.agent.arbiter.min_run == 7
    assert (old.serving.min_run, old.serving.due_after) == (3, 20)
    assert old.models["a"].lowest_tier is TierName.RAM
    assert (old.models["a"].limits.max_wait, old.models["a"].limits.queue) == (5, 3)
    assert old.models["b"].demote_after == 600
    assert old.jobs["train"].demote_after == old.jobs["other"].demote_after == 60


def test_each_is_warned_of_with_its_new_name_and_its_line() -> None:
    said = [line for line in advice(parse(OLD, origin="k.yaml")) if "is called" in line]
    assert [line.partition(";")[0] for line in said] == [
        "agent.arbiter.quantum: is called `min_run` now (k.yaml:2)",
        "models.a.lowest: is called `lowest_tier` now (k.yaml:1)",
        "models.b.sink: is called `demote_after` now (k.yaml:8)",
        "models.a.limits.hold: is called `max_wait` now (k.yaml:7)",
        "jobs.train.sink: is called `demote_after` now (k.yaml:10)",
        "jobs.other.sink: is called `demote_after` now (k.yaml:10)",
        "serving.quantum: is called `min_run` now (k.yaml:13)",
        "serving.max_wait: is called `due_after` now (k.yaml:14)",
    ]
    assert not parse(NEW, origin="k.yaml").warnings


def test_both_names_are_refused_at_the_old_one() -> None:
    with pytest.raises(BadInput) as refused:
        parse("serving:\n  min_run: 1\n  quantum: 2\n", origin="k.yaml")
    assert refused.value.message == (
        "k.yaml:3: serving.quantum: is the old name of `min_run`, which is here, too: remove `quantum`"
    )


def test_what_is_wrong_with_a_value_is_said_at_its_line_all_the_same() -> None:
    with pytest.raises(BadInput) as refused:
        parse("models:\n  a:\n    command: x\n    port: 1\n    limits:\n      hold: 0\n", origin="k.yaml")
    assert refused.value.message.startswith("k.yaml:6: models.a.limits.max_wait: must be more than 0")


def test_the_schema_knows_the_new_names_only() -> None:
    text = str(schema())
    now = {new for names in RENAMED.values() for new in names.values()}
    # `max_wait` is an old name of one section's and the new one of another's.
    assert all(f"'{old}'" not in text for names in RENAMED.values() for old in names if old not in now)
    assert all(f"'{new}'" in text for new in now)
    assert "max_wait" not in schema()["$defs"]["ServingSettings"]["properties"]


@pytest.mark.parametrize(
    "text", ["models: [1]\n", "models: {a: 3}\n", "serving: quantum\n", "agent: {1: {quantum: 2}}\n"]
)
def test_a_senseless_file_is_refused_as_ever(text: str) -> None:
    with pytest.raises(BadInput):
        parse(text, origin="k.yaml")
