"""Every example is a configuration that is understood, is told of in the list, and says what was tried on a real GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kybernate.settings import load

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
DIRECTORIES = sorted(path.parent for path in EXAMPLES.glob("*/kybernate.yaml"))
WANTED = {"vllm", "sglang", "llama-cpp", "gguf", "training", "notebook"}


def test_all_are_there_and_listed() -> None:
    names = {directory.name for directory in DIRECTORIES}
    assert names >= WANTED
    listed = (EXAMPLES / "README.md").read_text()
    assert all(f"[{name}]({name}/README.md)" in listed for name in names)
    assert names == {path.name for path in EXAMPLES.iterdir() if path.is_dir()}


@pytest.mark.parametrize("directory", DIRECTORIES, ids=lambda path: path.name)
def test_the_configuration_is_understood(directory: Path) -> None:
    file = directory / "kybernate.yaml"
    done = subprocess.run(
        [sys.executable, "-m", "kybernate.cli", "check", str(file)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    settings = load(file)
    assert settings.models
    for model in settings.models.values():
        assert str(model.port) in model.command, "the port that is served is the port that is asked"


@pytest.mark.parametrize("directory", DIRECTORIES, ids=lambda path: path.name)
def test_it_says_what_was_tried(directory: Path) -> None:
    words = " ".join((directory / "README.md").read_text().split())
    assert "Not yet tried on a real GPU" in words or "on a GPU" in words
