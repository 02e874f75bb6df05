"""The CRIU that set-up found really dumps and restores here; the finder chooses and refuses as it says.

Not here: dumping workloads with namespaces (tests/process).
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from tests.conftest import Eventually

from kybernate.model.errors import Unsupported
from kybernate.process.criu import MINIMUM, Criu, find_criu, version_of


@pytest.fixture
def criu() -> Criu:
    try:
        return find_criu()
    except Unsupported as e:
        pytest.skip(f"left out: {e.message}")


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.root
def test_check_is_content(criu: Criu) -> None:
    answer = subprocess.run([criu.path, "check"], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr


@pytest.mark.root
def test_a_real_process_is_dumped_and_restored(criu: Criu, tmp_path: Path, eventually: Eventually) -> None:
    sleeper = subprocess.Popen(
        ["sleep", "1000"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    command = Path(f"/proc/{sleeper.pid}/cmdline")
    try:
        eventually(lambda: command.read_bytes().startswith(b"sleep"), what="exec of sleep")
        common = ["-D", str(tmp_path), "-v4", "--manage-cgroups=ignore"]
        dump = [str(criu.path), "dump", "-t", str(sleeper.pid), "-o", "dump.log", *common]
        assert subprocess.run(dump, check=False).returncode == 0, (tmp_path / "dump.log").read_text()[-2000:]
        assert sleeper.wait(60) == -signal.SIGKILL, "a dumped process must not run on"

        restore = [str(criu.path), "restore", "-d", "--pidfile", "pid", "-o", "restore.log", *common]
        assert subprocess.run(restore, check=False).returncode == 0, (tmp_path / "restore.log").read_text()[-2000:]
        assert int((tmp_path / "pid").read_text()) == sleeper.pid
        assert command.read_bytes() == b"sleep\x001000\x00"
    finally:
        if command.exists() and command.read_bytes().startswith(b"sleep\x001000"):
            os.kill(sleeper.pid, signal.SIGKILL)
            eventually(lambda: not command.exists() or not command.read_bytes(), what="end of sleep")


def test_the_named_one_is_taken_or_refused_but_never_passed_over(tmp_path: Path) -> None:
    new = program(tmp_path / "new", "echo Version: 4.7.1")
    assert find_criu({"KYBERNATE_CRIU": str(new)}) == Criu(new, (4, 7, 1))
    with pytest.raises(Unsupported, match="absent does not run"):
        find_criu({"KYBERNATE_CRIU": str(tmp_path / "absent")})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("echo Version: 3.17.1", "is 3.17.1", id="too old"),
        pytest.param("exit 1", "does not run", id="broken"),
        pytest.param("echo hello", "does not run", id="not criu"),
    ],
)
def test_a_refusal_names_what_was_found_and_what_to_do(tmp_path: Path, text: str, words: str) -> None:
    path = program(tmp_path / "criu", text)
    with pytest.raises(Unsupported, match=words) as refusal:
        find_criu({"KYBERNATE_CRIU": str(path)})
    assert str(path) in refusal.value.message
    assert refusal.value.hint


def test_version_is_read_from_what_it_prints(tmp_path: Path) -> None:
    assert version_of(program(tmp_path / "criu", "printf 'Version: 4.2\\nGitID: v4.2\\n'")) == (4, 2)
    assert version_of(tmp_path / "absent") is None


def test_minimum_is_what_recent_kernels_need() -> None:
    assert MINIMUM == (4, 2)
