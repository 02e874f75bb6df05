"""System V objects go with a workload from life to life, its commands see them, and the host never does."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.conftest import Eventually
from tests.process.conftest import Workloads

from kybernate.model.types import WorkloadName
from kybernate.process import removed_segments
from kybernate.process.dumping import dump
from kybernate.process.entering import run_inside
from kybernate.process.preflight import dumpable
from kybernate.process.restoring import restore

from .dumps import feature, finish, wait_ready

pytestmark = pytest.mark.root

KINDS = ("shm", "sem", "msg")


def on_the_host() -> dict[str, str]:
    return {kind: Path(f"/proc/sysvipc/{kind}").read_text() for kind in KINDS}


def test_they_go_from_life_to_life(
    workloads: Workloads, elsewhere: Workloads, eventually: Eventually, tmp_path: Path
) -> None:
    before = on_the_host()
    tree = workloads.launch(*feature("system_v"))
    wait_ready(tree, eventually)
    for life in range(2):
        images = tmp_path / f"images-{life}"
        dump(tree, images, hold=True)
        assert len(removed_segments.found(images)) == 1
        tree.remove()
        tree = restore(
            images,
            name=WorkloadName(f"life-{life}"),
            run_directory=elsewhere.state_directory / f"workloads/life-{life}",
        ).tree
        elsewhere.trees.append(tree)
        assert dumpable(tree) == [], "its namespace is its supervisor's"
    # A heading, three that stay and the one that goes with its last mapping.
    assert run_inside(tree, ["/bin/sh", "-c", "[ $(wc -l </proc/sysvipc/shm) = 5 ]"], timeout_s=30) == (0, "")
    finish(tree)
    assert on_the_host() == before


def test_two_clones_have_their_own(
    workloads: Workloads, elsewhere: Workloads, eventually: Eventually, tmp_path: Path
) -> None:
    tree = workloads.launch(*feature("system_v"))
    wait_ready(tree, eventually)
    dump(tree, tmp_path / "images")
    finish(tree)  # it ran on, and found everything as it was
    for name in ("a", "b"):
        run_directory = elsewhere.state_directory / "workloads" / name
        elsewhere.trees.append(restore(tmp_path / "images", name=WorkloadName(name), run_directory=run_directory).tree)
    for clone in elsewhere.trees:
        finish(clone)


def test_without_any_there_is_no_namespace_in_the_dump(
    workloads: Workloads, eventually: Eventually, tmp_path: Path
) -> None:
    tree = workloads.shell("echo ready; exec sleep 1000")
    wait_ready(tree, eventually)
    dump(tree, tmp_path / "images")
    assert not list((tmp_path / "images").glob("ipcns-*"))
    assert removed_segments.found(tmp_path / "images") == []
