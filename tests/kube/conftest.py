"""Clusters for tests. All tests of a run share one of each kind, across pytest-xdist's processes; use a namespace each."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from tests.kube.cluster import Cluster, Missing, Shape, join
from tests.kube.cluster.binaries import NODE, SCALE, find


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
def control_plane(programs: None, run_name: str) -> Iterator[Cluster]:
    """etcd and an API server. Pods can be made there but nobody runs them."""
    yield from shared(Shape(), run_name)


@pytest.fixture(scope="session")
def cluster(programs: None, run_name: str) -> Iterator[Cluster]:
    """All of Kubernetes with two real nodes; needs the marker `root`."""
    yield from shared(Shape(nodes=2), run_name)


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
def run_name() -> str:
    """The same for all processes of one run of pytest."""
    return os.environ.get("PYTEST_XDIST_TESTRUNUID", uuid.uuid4().hex)[:10]


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a short path, for Unix sockets."""
    path = Path(tempfile.mkdtemp(prefix="kyb-kube-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def shared(shape: Shape, run_name: str) -> Iterator[Cluster]:
    """A cluster of this shape, used together with the other processes of the run."""
    directory = Path(tempfile.gettempdir()) / f"kyb-kube-{run_name}-{shape.nodes}"
    joined = join(directory, shape)
    try:
        yield joined
    finally:
        joined.leave()
        if not directory.exists():
            Path(f"{directory}.lock").unlink(missing_ok=True)
