"""A test that leaves something behind fails, and what it left is ended; what a wider fixture has made may stay as long as that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import Eventually

from kybernate.process import procfs

ROOT = Path(__file__).resolve().parents[2]
MARK = "KYB_LEFT_BY"

HEAD = """
import os, pytest, subprocess, sys, tempfile, threading, time
from pathlib import Path
SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
"""
LEAVES = {
    "process": "subprocess.Popen(SLEEP, env={'KYB_LEFT_BY': os.environ['KYB_LEFT_BY']})",
    "an orphan": "subprocess.run(['sh', '-c', '\"$@\" & ', 'sh', *SLEEP], start_new_session=True)",
    "directory": "tempfile.mkdtemp()",
    "a directory in memory": "tempfile.mkdtemp(dir='/dev/shm')",
    "thread": "threading.Thread(target=lambda: time.sleep(600), daemon=True, name='forgotten').start()",
    "mount": "made = tempfile.mkdtemp(); subprocess.run(['mount', '-t', 'tmpfs', 'none', made], check=True)",
    "cgroup": (
        "made = Path(tempfile.mkdtemp()); from kybernate.process.cgroups import WorkloadCgroup; "
        "WorkloadCgroup.create(state_directory=made, name='w'); made.rmdir()"
    ),
}
SAYS = {"an orphan": "process", "a directory in memory": "directory"}


def run_with(directory: Path, text: str, mark: str) -> subprocess.CompletedProcess[str]:
    """A run of pytest of its own with such a file."""
    file = directory / "test_it.py"
    file.write_text(HEAD + text)
    environment = {**os.environ, MARK: mark, "KYB_PATIENCE_S": "0.5", "TMPDIR": str(directory)}
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_CURRENT_TEST"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.conftest"]
    command += ["-W", "ignore::ResourceWarning", "-W", "ignore::pytest.PytestUnraisableExceptionWarning"]
    return subprocess.run(
        [*command, "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), str(file)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def marked(mark: str) -> list[int]:
    found = []
    for pid in procfs.all_pids():
        try:
            if f"{MARK}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes():
                found.append(int(pid))
        except OSError:
            continue
    return found


@pytest.mark.root
@pytest.mark.parametrize("kind", list(LEAVES))
def test_what_is_left_fails_its_test_and_is_ended(tmp_path: Path, eventually: Eventually, kind: str) -> None:
    mark = str(tmp_path)
    done = run_with(tmp_path, f"def test_leaves():\n    {LEAVES[kind]}\n\n\ndef test_next():\n    pass\n", mark)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "left behind by this test:" in done.stdout
    assert f"\n{SAYS.get(kind, kind)} " in done.stdout
    assert "2 passed, 1 error" in done.stdout, "the next one has nothing to do with it"
    eventually(lambda: not marked(mark), what="all of it ended")
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()


@pytest.mark.parametrize("scope", ["module", "session"])
def test_what_a_wider_fixture_made_may_stay_as_long(tmp_path: Path, eventually: Eventually, scope: str) -> None:
    text = """
@pytest.fixture(scope="SCOPE")
def lasting():
    made = tempfile.mkdtemp()
    with subprocess.Popen(SLEEP) as process:
        yield process
        process.kill()
    os.rmdir(made)

def test_one(lasting):
    pass

def test_two(lasting):
    assert lasting.poll() is None
""".replace("SCOPE", scope)
    done = run_with(tmp_path, text, str(tmp_path))
    assert (done.returncode, "2 passed" in done.stdout) == (0, True), done.stdout + done.stderr
    done = run_with(tmp_path, text.replace("process.kill()", "process.kill(); subprocess.Popen(SLEEP)"), str(tmp_path))
    assert done.returncode == 1, "left by the fixture itself"
    assert "left behind by this test:\nprocess " in done.stdout
    eventually(lambda: not marked(str(tmp_path)), what="all of it ended")
