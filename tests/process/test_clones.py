"""Many lives from one dump, at once: each in its own house, none sees another."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Eventually
from tests.process.conftest import Workloads

from kybernate.model.types import WorkloadName
from kybernate.process.dumping import dump
from kybernate.process.networks import open_socket
from kybernate.process.restoring import restore
from kybernate.process.tree import CONTROL, Tree

from .dumps import FEATURES, feature, finish, output, wait_ready

pytestmark = pytest.mark.root

COUNT = 20


def restored(elsewhere: Workloads, images: Path, name: str, **fields: Any) -> Tree:
    run_directory = elsewhere.state_directory / "workloads" / name
    report = restore(images, name=WorkloadName(name), run_directory=run_directory, **fields)
    elsewhere.trees.append(report.tree)
    return report.tree


@pytest.mark.timeout(300)
def test_clones_run_side_by_side(
    workloads: Workloads, elsewhere: Workloads, tmp_path: Path, eventually: Eventually
) -> None:
    (tmp_path / "data").mkdir()
    tree = workloads.launch(*feature("server", str(tmp_path / "data")), directory=FEATURES, layers=[tmp_path / "data"])
    wait_ready(tree, eventually)
    dump(tree, tmp_path / "images")  # the first one lives on, too
    names = [f"clone-{number}" for number in range(COUNT)]
    with ThreadPoolExecutor(4) as pool:
        clones = list(pool.map(lambda name: restored(elsewhere, tmp_path / "images", name), names))
    assert [clone.name for clone in clones] == names
    seeds = set()
    for life in (tree, *clones):
        with open_socket(life) as connection:
            connection.settimeout(60)
            connection.connect(("127.0.0.1", 8080))  # each has its own port 8080
            answer = connection.makefile().readline().split()
        host, seed, counted = answer
        assert host == life.name
        assert counted == "1", "each has its own memory, layer and /dev/shm"
        seeds.add(seed)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
            control.connect(str(life.run_directory / CONTROL / "1000.sock"))
    assert len(seeds) == COUNT + 1
    for life in (tree, *clones):
        finish(life)
        assert output(life).count("ended") == 1
    assert list((tmp_path / "data").iterdir()) == []
