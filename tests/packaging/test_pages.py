"""docs/configuration.md and the JSON schema say what the models say, with a reason for each setting."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.unit

TREE = Path(__file__).resolve().parents[2]


@pytest.fixture
def configuration() -> ModuleType:
    spec = importlib.util.spec_from_file_location("configuration", TREE / "scripts" / "configuration.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_those_of_the_models(configuration: ModuleType) -> None:
    for path, text in configuration.files().items():
        assert path.read_text() == text, "run `python scripts/configuration.py`"


def test_every_setting_has_its_reason(configuration: ModuleType) -> None:
    assert [name for name, field in configuration.settings() if not field.description] == []
