"""A dump that fails, is refused or loses its agent leaves the workload as it was, and no half images."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.conftest import Eventually
from tests.process.conftest import Workloads

from kybernate.model.errors import BadInput, Conflict, KybernateError, NoRoom, NotFound, Unsupported
from kybernate.process import dumping, images
from kybernate.process.criu import Criu
from kybernate.process.dumping import MARK, Settled, dump, settle
from kybernate.process.tree import Tree

from .dumps import FEATURES, feature, finish, wait_ready

pytestmark = pytest.mark.root


@pytest.fixture
def tree(request: pytest.FixtureRequest, workloads: Workloads, eventually: Eventually) -> Tree:
    found = workloads.launch(*feature(getattr(request, "param", "threads")), directory=FEATURES)
    wait_ready(found, eventually)
    return found


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("hold", [False, True])
def test_a_dump_leaves_the_tree_as_asked(tree: Tree, tmp_path: Path, frozen: bool, hold: bool) -> None:
    if frozen:
        tree.freeze()
    report = dump(tree, tmp_path / "images", hold=hold)
    assert tree.frozen == (frozen or hold)
    assert names(tmp_path) == ["images"]
    assert images.verify(tmp_path / "images") == report.record
    assert not (tree.run_directory / MARK).exists()
    assert (tmp_path / "images").stat().st_mode & 0o77 == 0, "memory holds secrets"
    tree.thaw()
    finish(tree)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_full_disk(tree: Tree, tmp_path: Path, frozen: bool) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", small], check=True)
    try:
        if frozen:
            tree.freeze()
        with pytest.raises(
            NoRoom, match=r"can't be dumped into .*small: No space left on device .*it is as before"
        ) as failure:
            dump(tree, small / "images", hold=True)
        assert "\n" not in str(failure.value)
        assert names(small) == []
        assert tree.frozen == frozen
        assert not (tree.run_directory / MARK).exists()
    finally:
        subprocess.run(["umount", small], check=True)
    tree.thaw()
    finish(tree)


def test_a_criu_that_breaks(tree: Tree, tmp_path: Path) -> None:
    broken = tmp_path / "criu"
    broken.write_text("#!/bin/sh\necho oh no >&2\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(KybernateError, match="as before: oh no"):
        dump(tree, tmp_path / "images", hold=True, criu=Criu(broken, (9, 9)))
    assert names(tmp_path) == ["criu"]
    assert not tree.frozen
    finish(tree)


def test_senseless_orders(tree: Tree, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="exists already"):
        dump(tree, tmp_path)
    with pytest.raises(BadInput, match="can't make"):
        dump(tree, tmp_path / "no" / "images")
    finish(tree)
    with pytest.raises(Conflict, match="has ended"):
        dump(tree, tmp_path / "images")


def test_a_start_that_was_not_written_down(tree: Tree, tmp_path: Path) -> None:
    (tree.run_directory / "launch.json").unlink()
    with pytest.raises(Unsupported, match=r"launch\.json is missing"):
        dump(tree, tmp_path / "images")
    finish(tree)


def test_one_dump_at_a_time(tree: Tree, tmp_path: Path) -> None:
    results: list[object] = []

    def one(number: int) -> None:
        try:
            results.append(dump(tree, tmp_path / f"images-{number}"))
        except Conflict as e:
            results.append(e)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = [result for result in results if not isinstance(result, Conflict)]
    assert done
    assert len(names(tmp_path)) == len(done)
    assert all("is being dumped" in str(result) for result in results if isinstance(result, Conflict))
    finish(tree)


def test_whoever_begins_is_alone(tree: Tree, tmp_path: Path) -> None:
    """However close they begin: who looks whether something was left of an earlier dump takes no mark away that is being made."""
    mark = tree.run_directory / MARK
    without: list[int] = []

    def begin(number: int) -> None:
        for _ in range(500):
            with contextlib.suppress(Conflict):
                settle(tree.run_directory, wait_s=0.0)
                with dumping._mark(tree, tmp_path / "nothing") as descriptor:
                    if not (mark.exists() and os.path.samestat(mark.stat(), os.fstat(descriptor))):
                        without.append(number)

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(without) == 0
    assert settle(tree.run_directory) is Settled.NOTHING
    finish(tree)


AGENT = """
import sys
from pathlib import Path
from kybernate.process.dumping import dump
from kybernate.process.tree import attach
tree = attach(Path(sys.argv[1]))
print("begins", flush=True)
dump(tree, Path(sys.argv[2]), hold=True)
print("done", flush=True)
"""


@pytest.mark.parametrize("tree", ["threads", "saturated"], indirect=True)
@pytest.mark.parametrize("delay_s", [0.0, 0.03, 0.06, 0.1, 0.15, 0.2])
def test_an_agent_that_is_killed(tree: Tree, tmp_path: Path, delay_s: float) -> None:
    agent = subprocess.Popen(
        [sys.executable, "-c", AGENT, tree.run_directory, tmp_path / "images"], stdout=subprocess.PIPE
    )
    assert agent.stdout is not None
    with agent:
        agent.stdout.readline()
        time.sleep(delay_s)  # somewhere in the middle: any outcome below is right
        agent.kill()
    settled = settle(tree.run_directory)
    assert settled in (Settled.NOTHING, Settled.CLEANED)
    assert not (tree.run_directory / MARK).exists()
    whole = (tmp_path / "images").exists()
    assert names(tmp_path) == (["images"] if whole else [])
    if whole:
        images.verify(tmp_path / "images")
        tree.thaw()
    assert not tree.frozen
    finish(tree)


@pytest.mark.parametrize("tree", ["threads", "saturated"], indirect=True)
@pytest.mark.parametrize("what", ["dumper", "criu"])
def test_helpers_that_are_killed(tree: Tree, tmp_path: Path, eventually: Eventually, what: str) -> None:
    """The worst: what holds the workload by the throat is gone in the middle."""
    failures: list[KybernateError] = []

    def attempt() -> None:
        try:
            dump(tree, tmp_path / "images", hold=True)
        except KybernateError as e:
            failures.append(e)

    thread = threading.Thread(target=attempt)
    thread.start()
    helpers = Path(str(tree.cgroup)).parent / "supervisor" / "cgroup.procs"

    def victims() -> list[int]:
        found = []
        for pid in map(int, helpers.read_text().split()):
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if (b"criu" in command and b"dump" in command) if what == "criu" else b"process.dumper" in command:
                found.append(pid)
        return found

    for pid in eventually(victims):
        with contextlib.suppress(ProcessLookupError):  # it may just have ended by itself
            os.kill(pid, signal.SIGKILL)
    thread.join()
    if failures:
        assert names(tmp_path) == []
        assert "as before" in str(failures[0])
        assert settle(tree.run_directory) is Settled.NOTHING
    else:
        tree.thaw()
    assert not tree.frozen
    finish(tree)


def test_no_dump_is_no_dump(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="holds no dump"):
        images.verify(tmp_path)
    with pytest.raises(NotFound, match="holds no dump"):
        images.verify(tmp_path / "absent")
