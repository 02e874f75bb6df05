"""A tree is dumped, killed, and restored elsewhere: everything it held is there again. One program a feature, in features/."""

from __future__ import annotations

import shutil

import pytest

from kybernate.model.types import WorkloadName
from kybernate.process import images
from kybernate.process.dumping import dump
from kybernate.process.restoring import restore

from .dumps import FEATURES, feature, finish, wait_ready

pytestmark = pytest.mark.root

PROGRAMS = sorted(path.stem for path in FEATURES.glob("*.py") if path.stem != "station")


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_feature_survives(program, workloads, elsewhere, tmp_path, eventually):
    tree = workloads.launch(*feature(program), directory=FEATURES)
    wait_ready(tree, eventually)
    dump(tree, tmp_path / "images", hold=True)
    images.verify(tmp_path / "images")
    assert tree.frozen
    tree.remove()
    shutil.rmtree(tree.run_directory)
    found = restore(
        tmp_path / "images", name=WorkloadName("again"), run_directory=elsewhere.state_directory / "workloads/again"
    )
    elsewhere.trees.append(found.tree)
    finish(found.tree)
