"""`up --simulated` that fails takes the GPU away that it made, and no other."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.guardian import guarded

from kybernate.cli.simulated import gpu_path, taken_away_on_failure
from kybernate.cuda import simulated
from kybernate.model.errors import BadInput
from kybernate.model.layout import StateDirectory
from kybernate.model.types import MIB

pytestmark = pytest.mark.timeout(300)

SIZE = "64MiB"
FILE = "agent: {{pool: {{size: 64MiB}}}}\nmodels: {{m: {{command: x, port: 1}}}}\nactivator: {{listen: '{}'}}\n"


@pytest.fixture
def state() -> Iterator[StateDirectory]:
    root = Path(tempfile.mkdtemp(prefix="kyb-"))
    with guarded(root):
        found = StateDirectory(root / "s")
        try:
            yield found
        finally:
            if gpu_path(found).exists():
                simulated.remove(gpu_path(found))


def up(state: StateDirectory, file: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return kybernate(state, "up", "-f", str(file), f"--simulated={SIZE}", *words)


def kybernate(state: StateDirectory, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kybernate.cli", *words, "--state-dir", str(state.root)],
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("KYBERNATE_")},
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("words", [(), ("--detach",)], ids=["foreground", "detached"])
def test_a_failed_start_leaves_no_gpu(state: StateDirectory, tmp_path: Path, words: tuple[str, ...]) -> None:
    file = tmp_path / "k.yaml"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        file.write_text(FILE.format(f"127.0.0.1:{taken.getsockname()[1]}"))
        done = up(state, file, *words)
    assert done.returncode == 2, done
    assert "can't listen on 127.0.0.1" in done.stderr
    assert not gpu_path(state).exists()


def test_a_failed_start_leaves_what_was_there(state: StateDirectory, tmp_path: Path) -> None:
    """By an agent that runs, or by one that did."""
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("agent: {pool: {size: 64MiB}}\n")
    assert up(state, good, "--detach").returncode == 0
    try:
        before = simulated.describe(gpu_path(state))
        assert "uses" in up(state, good, "--detach").stderr
        with socket.create_server(("127.0.0.1", 0)) as taken:
            bad.write_text(FILE.format(f"127.0.0.1:{taken.getsockname()[1]}"))
            assert up(state, bad).returncode == 2
        assert simulated.describe(gpu_path(state)) == before
    finally:
        assert kybernate(state, "down", "--stop").returncode == 0
    assert not gpu_path(state).exists(), "whoever ends it takes it away"


def test_not_while_it_is_of_use(state: StateDirectory) -> None:
    """To an agent that began meanwhile, or to workloads."""
    path = gpu_path(state)

    def fails() -> None:
        with pytest.raises(BadInput), taken_away_on_failure(state):
            raise BadInput("no")

    made = simulated.make(path, size_bytes=64 * MIB)
    state.workloads.mkdir(parents=True)
    other = subprocess.Popen(
        ["flock", str(state.lock), "sh", "-c", "echo; read x"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    with other:
        other.stdout.readline()
        fails()
        assert simulated.describe(path) == made, "an agent has it"
        other.communicate(b"\n")
    for place in (state.workloads / "w", path / "sockets" / "1-1"):
        place.mkdir()
        fails()
        assert simulated.describe(path) == made, place
        place.rmdir()
    if made.mounted:
        (path / "memory").write_bytes(bytes(MIB))
        fails()
        assert simulated.describe(path) == made, "memory is in use"
        (path / "memory").unlink()
    fails()
    assert not path.exists()
