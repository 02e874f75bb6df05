"""Ctrl-C during the tests, or a kill of them, leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import Eventually

from kybernate.process import procfs

ROOT = Path(__file__).resolve().parents[2]
TEST = "tests/agent/switching/test_switching.py::test_pause_and_resume"

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short, since sockets lie below it."""
    made = Path(tempfile.mkdtemp(prefix="kyi-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("workers", ["0", "1"])
def test_nothing_is_left(directory: Path, eventually: Eventually, number: signal.Signals, workers: str) -> None:
    environment = {**os.environ, "TMPDIR": str(directory)}
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_CURRENT_TEST"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "pytest", "-q", "-n", workers, "-p", "no:cacheprovider", TEST]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as tests:
        eventually(
            lambda: list(directory.glob("k*/kyb-*/s/workloads/one/output.log")), timeout_s=60, what="a workload runs"
        )
        assert left(directory)
        os.killpg(tests.pid, number)
    eventually(lambda: not left(directory), timeout_s=30, what="all of it is gone")


def left(directory: Path) -> list[str]:
    found = [line for line in Path("/proc/self/mounts").read_text().splitlines() if f" {directory}/" in line]
    for pid in procfs.all_pids():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        if os.fsencode(directory) in words:
            found.append(f"process {pid} {words[:200]!r}")
    return found + [str(path) for path in directory.glob("kyb-*")]
