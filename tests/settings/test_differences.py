"""Which settings differ between two readings of a file, by the names that a person finds there."""

from __future__ import annotations

import pytest

from kybernate.settings import Settings, parse
from kybernate.settings.differences import differing

pytestmark = pytest.mark.unit

BASE = "agent: {vram: {limit: 40GiB}, arbiter: {settle: 1s}}\nserving: {policy: fifo}\n"


def settings(text: str = BASE) -> Settings:
    return parse(text, origin="k.yaml")


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        pytest.param(BASE, [], id="nothing"),
        pytest.param(BASE + "# a remark\n", [], id="nothing that means anything"),
        pytest.param(BASE.replace("40GiB", "40960MiB"), [], id="the same, written otherwise"),
        pytest.param(BASE.replace("40GiB", "41GiB"), ["agent.vram.limit"], id="one setting, by its place"),
        pytest.param(
            BASE.replace("40GiB", "41GiB").replace("1s", "2s"),
            ["agent.vram.limit", "agent.arbiter.settle"],
            id="two, in the order in which they are described",
        ),
        pytest.param("serving: {policy: fifo}\n", ["agent.vram.limit"], id="one that is left out now"),
    ],
)
def test_what_differs_is_named_as_in_the_file(changed: str, names: list[str]) -> None:
    assert differing(settings().agent, settings(changed).agent, under="agent") == names


def test_the_other_way_round_the_same_settings_differ() -> None:
    one, other = settings(), settings(BASE.replace("fifo", "lru"))
    assert differing(one.serving, other.serving, under="serving") == ["serving.policy"]
    assert differing(other.serving, one.serving, under="serving") == ["serving.policy"]
