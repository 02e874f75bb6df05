"""A restore that fails, is refused or loses its agent leaves nothing behind, and the dump can be used again."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Eventually
from tests.process.conftest import Leftovers, Workloads

from kybernate.model.errors import BadInput, Conflict, KybernateError, NotFound
from kybernate.model.types import WorkloadName
from kybernate.process import images
from kybernate.process.criu import Criu
from kybernate.process.dumping import dump
from kybernate.process.restoring import restore
from kybernate.process.tree import Tree, attach, sweep

from .dumps import FEATURES, feature, finish, wait_ready

pytestmark = pytest.mark.root


@pytest.fixture
def dumped(workloads: Workloads, eventually: Eventually, tmp_path: Path) -> Path:
    """A dump whose workload is gone."""
    data = tmp_path / "data"
    data.mkdir()
    tree = workloads.launch(*feature("threads"), directory=FEATURES, layers=[data])
    wait_ready(tree, eventually)
    dump(tree, tmp_path / "images", hold=True)
    tree.remove()
    shutil.rmtree(tree.run_directory)
    return tmp_path / "images"


@pytest.fixture
def again(workloads: Workloads) -> Callable[..., Tree]:
    """Restore as the workload `work` where the dumped one was."""

    def order(directory: Path, **fields: Any) -> Tree:
        run_directory = workloads.state_directory / "workloads/work"
        tree = restore(directory, name=WorkloadName("work"), run_directory=run_directory, **fields).tree
        workloads.trees.append(tree)
        return tree

    return order


def damage(path: Path) -> None:
    """Other bytes, same length, still well formed to a reader of lengths."""
    data = bytearray(path.read_bytes())
    data[12:-1] = bytes(byte ^ 0x55 for byte in data[12:-1])
    path.write_bytes(data)


def test_criu_s_failure(dumped: Path, again: Callable[..., Tree], workloads: Workloads, leftovers: Leftovers) -> None:
    shutil.copytree(dumped, dumped.parent / "copy")
    damage(dumped / "fs-1000.img")
    with pytest.raises(KybernateError, match="workload work could not be restored: ") as failure:
        again(dumped)
    assert "\n" not in str(failure.value)
    assert leftovers.found() == []
    assert list((workloads.state_directory / "workloads").iterdir()) == []
    finish(again(dumped.parent / "copy"))


def test_a_damaged_archive(
    dumped: Path, again: Callable[..., Tree], workloads: Workloads, leftovers: Leftovers
) -> None:
    for name in ("layer-0.tar", "control.tar", "shm.tar"):
        good = (dumped / name).read_bytes()
        (dumped / name).write_bytes(b"\xff" * len(good))
        with pytest.raises(KybernateError, match="could not be restored: "):
            again(dumped)
        (dumped / name).write_bytes(good)
        assert leftovers.found() == []
        assert list((workloads.state_directory / "workloads").iterdir()) == []
    finish(again(dumped))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        pytest.param(lambda d: (d / "tree.json").unlink(), "holds no dump", id="no-record"),
        pytest.param(lambda d: (d / "core-1000.img").unlink(), "core-1000.img is missing", id="missing"),
        pytest.param(
            lambda d: (d / "pages-1.img").write_bytes((d / "pages-1.img").read_bytes()[:-1]),
            "pages-1.img has .* bytes instead of",
            id="cut-off",
        ),
        pytest.param(lambda d: (d / "tree.json").write_text("{}"), "is damaged", id="empty-record"),
        pytest.param(
            lambda d: (d / "tree.json").write_text((d / "tree.json").read_text().replace('"format": 3', '"format": 4')),
            "is of format 4",
            id="newer",
        ),
        pytest.param(
            lambda d: (d / "tree.json").write_text(
                (d / "tree.json").read_text().replace('"core-1000.img"', '"../core-1000.img"')
            ),
            "no file's name",
            id="path",
        ),
        pytest.param(
            lambda d: (d / "mm-1000.img").write_bytes(b"\0" * (d / "mm-1000.img").stat().st_size),
            "mm-1000.img",
            id="zeros",
        ),
    ],
)
def test_a_damaged_dump_is_refused_before_anything_is_done(
    dumped: Path,
    again: Callable[..., Tree],
    workloads: Workloads,
    leftovers: Leftovers,
    harm: Callable[[Path], object],
    words: str,
) -> None:
    harm(dumped)
    with pytest.raises((BadInput, NotFound), match=words) as refusal:
        again(dumped)
    assert "\n" not in str(refusal.value)
    assert leftovers.found() == []
    assert list((workloads.state_directory / "workloads").iterdir()) == []


def test_every_image_has_its_size_checked(dumped: Path) -> None:
    record = images.read(dumped)
    assert set(record.files) == {path.name for path in dumped.iterdir()} - {"tree.json"}
    for name in record.files:
        path = dumped / name
        good = path.read_bytes()
        path.write_bytes(good + b"x")
        with pytest.raises(BadInput, match=name):
            images.verify(dumped)
        path.write_bytes(good)
    images.verify(dumped)


def test_files_that_differ_are_named_beforehand(dumped: Path, again: Callable[..., Tree], leftovers: Leftovers) -> None:
    text = (dumped / "tree.json").read_text()
    library = next(file for file in images.read(dumped).needs if file.path.endswith(".so.6"))
    (dumped / "tree.json").write_text(text.replace(f'"bytes": {library.bytes}', f'"bytes": {library.bytes + 1}'))
    with pytest.raises(BadInput, match=r"can't be restored here: /.*\.so\.6 has \d+ bytes, had \d+"):
        again(dumped)
    (dumped / "tree.json").write_text(text.replace(library.path, "/no/such/library.so.6"))
    with pytest.raises(BadInput, match=r"/no/such/library\.so\.6 is missing"):
        again(dumped)
    assert leftovers.found() == []


def test_a_name_that_is_taken(dumped: Path, again: Callable[..., Tree]) -> None:
    tree = again(dumped)
    with pytest.raises(Conflict, match="workload work already runs"):
        again(dumped)
    finish(tree)
    finish(again(dumped))  # it has ended: free again


def test_a_criu_that_breaks(dumped: Path, again: Callable[..., Tree], leftovers: Leftovers, tmp_path: Path) -> None:
    broken = tmp_path / "criu"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(KybernateError, match=r"could not be restored: .*exit status 3"):
        again(dumped, criu=Criu(broken, (9, 9)))
    assert leftovers.found() == []


def test_one_that_takes_too_long(
    dumped: Path, again: Callable[..., Tree], leftovers: Leftovers, tmp_path: Path
) -> None:
    slow = tmp_path / "criu"
    slow.write_text("#!/bin/sh\nexec sleep 1000\n")
    slow.chmod(0o755)
    with pytest.raises(KybernateError, match=r"did not start within 0\.5 s"):
        again(dumped, criu=Criu(slow, (9, 9)), timeout_s=0.5)
    assert leftovers.found() == []


AGENT = """
import sys
from pathlib import Path
from kybernate.process.restoring import restore
from kybernate.model.types import WorkloadName
print("begins", flush=True)
restore(Path(sys.argv[1]), name="work", run_directory=Path(sys.argv[2]))
"""


@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3])
def test_an_agent_that_is_killed(
    dumped: Path,
    workloads: Workloads,
    again: Callable[..., Tree],
    leftovers: Leftovers,
    eventually: Eventually,
    delay_s: float,
) -> None:
    run_directory = workloads.state_directory / "workloads/work"
    agent = subprocess.Popen([sys.executable, "-c", AGENT, dumped, run_directory], stdout=subprocess.PIPE)
    assert agent.stdout is not None
    with agent:
        agent.stdout.readline()
        time.sleep(delay_s)  # somewhere in the middle: either outcome below is right
        agent.kill()
    try:
        tree = attach(run_directory)
    except NotFound:
        if run_directory.exists():
            sweep(run_directory)
        # A start that had not got so far as to be swept sees that its agent is gone, and ends by itself.
        eventually(lambda: leftovers.found() == [], what=f"nothing left: {leftovers.found()}")
        tree = again(dumped)
    else:
        workloads.trees.append(tree)
        assert tree.main_pid() is not None, "recorded only when it is whole"
    finish(tree)
