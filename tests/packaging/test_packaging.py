"""What a stranger's machine needs of the tree: a lock without private hosts, small run-time dependencies, a licence."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

TREE = Path(__file__).parent.parent.parent
PYPROJECT = tomllib.loads((TREE / "pyproject.toml").read_text())
LOCK = (TREE / "uv.lock").read_text()


def test_the_lock_names_public_hosts_only() -> None:
    hosts = set(re.findall(r"https?://([^/\"]+)", LOCK))
    assert hosts == {"pypi.org", "files.pythonhosted.org"}


def test_every_locked_file_has_a_hash() -> None:
    files = re.findall(r"^.*url = \"https://files.*$", LOCK, re.MULTILINE)
    assert files
    assert [line for line in files if 'hash = "sha256:' not in line] == []


def test_no_toolkit_at_run_time() -> None:
    """Some 500 MB come with cuda-bindings' extras."""
    names = {re.split(r"[<>=\[ ;]", dependency)[0] for dependency in PYPROJECT["project"]["dependencies"]}
    assert not {name for name in names if name.startswith("nvidia-")}
    assert "[" not in "".join(PYPROJECT["project"]["dependencies"])


def test_every_dependency_has_its_reason() -> None:
    reasons = (TREE / "docs" / "dependencies.md").read_text()
    groups = [entry for group in PYPROJECT["dependency-groups"].values() for entry in group if isinstance(entry, str)]
    wanted = [*PYPROJECT["project"]["dependencies"], *groups, *PYPROJECT["build-system"]["requires"], "uv"]
    names = [re.split(r"[<>=\[ ;]", dependency)[0] for dependency in wanted]
    assert [name for name in names if f"| {name} |" not in reasons] == []


def test_every_word_of_the_makefile_is_explained() -> None:
    makefile = (TREE / "Makefile").read_text()
    phony = re.findall(r"^\.PHONY: (\S+)$", makefile, re.MULTILINE)
    explained = re.findall(r"^([a-z0-9-]+):.*## ", makefile, re.MULTILINE)
    assert set(phony) - set(explained) <= {"venv", "criu"}, "only parts of `setup` may go unexplained"
