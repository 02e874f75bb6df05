"""The GPU side, whole: extents, broker, listener, hashing, copying, residual. What each scenario promises, scenarios.py says."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import SLOWER

SCENARIOS = Path(__file__).with_name("scenarios.py")

NAMES = [
    node.name
    for node in ast.parse(SCENARIOS.read_text()).body
    if isinstance(node, ast.FunctionDef) and [argument.arg for argument in node.args.args] == ["rig"]
]


@pytest.mark.timeout(300 * SLOWER)
@pytest.mark.parametrize("name", NAMES)
def test_scenario(scenario: Callable[[str], None], name: str) -> None:
    scenario(name)


def test_there_are_scenarios() -> None:
    assert len(NAMES) > 20
    assert Path(SCENARIOS).is_file()
