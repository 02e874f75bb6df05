"""A tree is dumped, killed, and restored elsewhere: everything it held is there again. One program a feature, in features/."""

from __future__ import annotations

import shutil

import pytest

from kybernate.model.types import WorkloadName
from kybernate.process import images
from kybernate.process.dumping import dump
from kybernate.process.restoring import restore

from .conftest import ENVIRONMENT
from .dumps import FEATURES, feature, finish, wait_ready

pytestmark = pytest.mark.root

PROGRAMS = sorted(path.stem for path in FEATURES.glob("*.py") if path.stem not in ("station", "server"))


IN_A_LAYER = ["files", "inotify", "locks", "pipes"]


@pytest.fixture
def lives(workloads, elsewhere, tmp_path, eventually):
    """Run a program of features/ until it is set up, dump it, end it, and let it finish somewhere else."""

    def live(program, **fields):
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
def test_a_feature_survives(program, lives):
    lives(program)


@pytest.mark.parametrize("program", IN_A_LAYER)
def test_a_feature_survives_in_a_layer(program, lives, tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    (place / "from the host").write_text("seen")
    lives(program, layers=[place], environment=ENVIRONMENT | {"PLACE": str(place)})
    assert [path.name for path in place.iterdir()] == ["from the host"], "the host's directory stays as it was"


@pytest.mark.parametrize("program", ["files", "semaphores", "shared_memory", "terminals", "unix_sockets"])
def test_a_feature_survives_for_another_user(program, lives):
    lives(program, environment=ENVIRONMENT | {"BECOME": "65534"})
