"""Clusters for tests. All tests of a run share one of each kind, across pytest-xdist's processes; use a namespace each."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from tests.cluster.harness import Cluster, Missing, Shape, alone, join
from tests.cluster.harness.binaries import CONTROL_PLANE, NODE, SCALE, find


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """All tests left out for the same reason become one line of pytest's summary, which is sorted by file and line."""
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple) and "left out" in report.longrepr[2]:
        report.longrepr = (str(Path(__file__)), 1, report.longrepr[2])
    return report


@pytest.fixture(scope="session")
def programs() -> None:
    """Leaves the test out, with one line for all of them, when the cluster's programs aren't there."""
    try:
        find({*NODE, *SCALE})
    except Missing as e:
        pytest.skip(str(e))


@pytest.fixture(scope="session")
def control_plane_programs(request: pytest.FixtureRequest) -> None:
    """The same for tests that need no more than etcd, an API server and kubectl, as in others' KUBEBUILDER_ASSETS."""
    try:
        find(CONTROL_PLANE)
    except Missing:
        request.getfixturevalue("programs")  # whose line names all that is missing


@pytest.fixture(scope="session")
def control_plane(control_plane_programs: None, of_this_run: Path) -> Iterator[Cluster]:
    """etcd and an API server. Pods can be made there but nobody runs them."""
    yield from shared(of_this_run / "kube-0", Shape())


@pytest.fixture(scope="session")
def cluster(programs: None, of_this_run: Path) -> Iterator[Cluster]:
    """All of Kubernetes with two real nodes; needs the marker `root`."""
    yield from shared(of_this_run / "kube-2", Shape(nodes=2))


@pytest.fixture
def namespace(request: pytest.FixtureRequest) -> Iterator[Callable[[Cluster], str]]:
    """`namespace(cluster)` makes one for this test, and removes it (with its pods) afterwards."""
    made: list[tuple[Cluster, str]] = []

    def make(where: Cluster) -> str:
        name = f"test-{uuid.uuid4().hex[:10]}"
        where.kubectl("create", "namespace", name)
        made.append((where, name))
        return name

    yield make
    for where, name in made:
        where.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="session")
def of_this_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that all processes of one run of pytest share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a short path, for Unix sockets."""
    return tmp_path_factory.mktemp("k")


def shared(directory: Path, shape: Shape) -> Iterator[Cluster]:
    """A cluster of this shape, used together with the other processes of the run."""
    joined = join(directory, shape)
    try:
        yield joined
    finally:
        with alone(directory):
            joined.leave()
