"""A tree is dumped, killed, and restored elsewhere: everything it held is there again. One program a feature, in features/."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Eventually
from tests.process.conftest import Workloads

from kybernate.model.types import WorkloadName
from kybernate.process import images
from kybernate.process.dumping import dump
from kybernate.process.preflight import may_read_limits
from kybernate.process.restoring import restore

from .conftest import ENVIRONMENT
from .dumps import FEATURES, feature, finish, wait_ready

pytestmark = pytest.mark.root

LEFT_OUT = ("station", "server", "private_tmp", "sqlite_databases")
"""Those that want a place of their own."""
PROGRAMS = sorted(path.stem for path in FEATURES.glob("*.py") if path.stem not in LEFT_OUT)


IN_A_LAYER = ["files", "inotify", "locks", "pipes"]


@pytest.fixture
def lives(workloads: Workloads, elsewhere: Workloads, tmp_path: Path, eventually: Eventually) -> Callable[..., None]:
    """Run a program of features/ until it is set up, dump it, end it, and let it finish somewhere else."""

    def live(program: str, **fields: Any) -> None:
        tree = workloads.launch(*feature(program), directory=FEATURES, **fields)
        wait_ready(tree, eventually)
        dump(tree, tmp_path / "images", hold=True)
        images.verify(tmp_path / "images")
        assert tree.frozen
        tree.remove()
        shutil.rmtree(tree.run_directory)
        run_directory = elsewhere.state_directory / "workloads/again"
        found = restore(tmp_path / "images", name=WorkloadName("again"), run_directory=run_directory)
        elsewhere.trees.append(found.tree)
        finish(found.tree)

    return live


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_feature_survives(program: str, lives: Callable[..., None]) -> None:
    lives(program)


@pytest.mark.parametrize("program", IN_A_LAYER)
def test_a_feature_survives_in_a_layer(program: str, lives: Callable[..., None], tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "from the host").write_text("seen")
    lives(program, layers=[place], environment=ENVIRONMENT | {"PLACE": str(place)})
    assert [path.name for path in place.iterdir()] == ["from the host"], "the host's directory stays as it was"


@pytest.mark.skipif(not may_read_limits(), reason="left out: needs CAP_SYS_RESOURCE")
@pytest.mark.parametrize("program", ["files", "terminals", "unix_sockets"])
def test_a_feature_survives_for_another_user(program: str, lives: Callable[..., None]) -> None:
    lives(program, environment=ENVIRONMENT | {"BECOME": "65534"})


def test_a_restored_tree_is_a_tree_like_any(workloads: Workloads, tmp_path: Path, eventually: Eventually) -> None:
    """Dumped, restored under the same name, dumped again, and so on; with exit status, signals and log."""
    tree = workloads.shell("trap 'echo got it; exit 5' USR1; echo ready; while :; do sleep 0.1; done")
    wait_ready(tree, eventually)
    began = (tree.run_directory / "output.log").read_text()
    for life in range(3):
        dump(tree, tmp_path / f"images-{life}", hold=True)
        tree.remove()
        tree = restore(tmp_path / f"images-{life}", name=WorkloadName("work"), run_directory=tree.run_directory).tree
        workloads.trees.append(tree)
        main = tree.main_pid()
        assert main is not None
        assert tree.inside_pid(main) == 1000
        assert (tree.run_directory / "output.log").read_text() == began, "what it wrote stays"
        tree.freeze()
        tree.thaw()
    tree.signal(signal.SIGUSR1)
    assert tree.wait(60) == 5
    assert (tree.run_directory / "output.log").read_text().endswith("got it\n")


def test_what_a_dump_says_of_itself(workloads: Workloads, tmp_path: Path, eventually: Eventually) -> None:
    (tmp_path / "data").mkdir()
    used = tmp_path / "used"
    used.write_text("content")
    tree = workloads.shell(f"echo ready; exec 5>>{used}; sleep 1000 & wait", layers=[tmp_path / "data"])
    eventually(lambda: len(tree.pids()) == 2)
    record = dump(tree, tmp_path / "images").record
    assert record == images.read(tmp_path / "images")
    assert record.launched.argv[0] == "/bin/sh"
    assert record.launched.layers == (str(tmp_path / "data"),)
    assert record.processes[0].startswith("/bin/sh -c echo ready")
    assert record.processes[1] == "sleep 1000"
    assert record.output_bytes == len("ready\n")
    assert record.last_inside >= 1001
    needed = {file.path: file for file in record.needs}
    assert needed[str(used)].written
    assert needed[str(used)].bytes == len("content")
    assert any("libc.so" in path for path in needed)
    assert not any(path.startswith(("/dev/", "/proc/", str(tree.run_directory))) for path in needed)
    assert all(path.is_file() for path in (tmp_path / "images").iterdir()), "a store needs names and bytes alone"
