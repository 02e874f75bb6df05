"""The bundle's installer refuses, in one line and before it writes anything, what can't become an installation.

A real installation with no network is a CI job of its own: the bundle takes half a minute to make.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TREE = Path(__file__).parent.parent.parent


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Everything but the wheels."""
    directory = tmp_path / "bundle"
    directory.mkdir()
    shutil.copy(TREE / "scripts" / "install.sh", directory)
    (directory / "VERSION").write_text("1.2.3\n")
    (directory / "PYTHON").write_text(f"{sys.version_info[0]}.{sys.version_info[1]}\n")
    return directory


def seal(bundle: Path) -> None:
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  ./{path.name}\n" for path in bundle.iterdir()]
    (bundle / "SHA256SUMS").write_text("".join(sums))


def install(bundle: Path, prefix: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([bundle / "install.sh", prefix], capture_output=True, text=True, check=False)


def test_a_damaged_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    seal(bundle)
    (bundle / "VERSION").write_text("6.6.6\n")
    answer = install(bundle, tmp_path / "prefix")
    assert answer.returncode == 1
    assert "error: the bundle is damaged; unpack it again" in answer.stderr
    assert not (tmp_path / "prefix").exists()


def test_another_python_is_refused_with_what_to_do(bundle: Path, tmp_path: Path) -> None:
    (bundle / "PYTHON").write_text("3.99\n")
    seal(bundle)
    answer = install(bundle, tmp_path / "prefix")
    assert answer.returncode == 1
    assert "for Python 3.99" in answer.stderr
    assert "make bundle PYTHON=" in answer.stderr
    assert not (tmp_path / "prefix").exists()


def test_a_failed_installation_leaves_no_half_of_one(bundle: Path, tmp_path: Path) -> None:
    seal(bundle)  # no wheels in it
    answer = install(bundle, tmp_path / "prefix")
    assert answer.returncode == 1
    assert "removed again" in answer.stderr
    assert not (tmp_path / "prefix" / "1.2.3").exists()


@pytest.mark.parametrize("script", sorted(path.name for path in (TREE / "scripts").glob("*.sh")))
def test_scripts_are_well_formed(script: str) -> None:
    subprocess.run(["bash", "-n", TREE / "scripts" / script], check=True)
