"""What tests of dumps and restores share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from kybernate.process.tree import CONTROL, OUTPUT, Tree

FEATURES = Path(__file__).parent / "features"


def feature(name: str, *arguments: str) -> list[str]:
    """The command of one of the programs in features/."""
    return [sys.executable, "-S", str(FEATURES / f"{name}.py"), *arguments]


def output(tree: Tree) -> str:
    """What it has written."""
    path = tree.run_directory / OUTPUT
    return path.read_text() if path.exists() else ""


def wait_ready(tree: Tree, eventually: Callable[..., object]) -> None:
    """Until its program has set up everything, or has ended trying."""
    eventually(lambda: "ready" in output(tree) or tree.exit() is not None, what=f"start of {tree.name}")
    assert tree.exit() is None, output(tree)


def finish(tree: Tree) -> None:
    """Let its program look at what it finds, and fail with its words where it is not content."""
    (tree.run_directory / CONTROL / "go").touch()
    status = tree.wait(90)
    assert status == 0, f"status {status}\n{output(tree)}"
