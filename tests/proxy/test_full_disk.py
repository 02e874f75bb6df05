"""A full state directory under a worker: it goes on answering, and no count is lost once there is room again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.mmap_dict import MmapedDict
from tests.conftest import Eventually, SmallTmpfs
from tests.proxy.rig import Rig

from kybernate.agent.serving.metrics import OfWorkers
from kybernate.model.messages import Endpoint
from kybernate.proxy import counters


def counted(directory: Path, name: str, **labels: str) -> float | None:
    registry = CollectorRegistry()
    registry.register(OfWorkers(directory))
    return registry.get_sample_value(f"kybernate_{name}", labels)


@pytest.mark.root
def test_a_worker_outlives_a_full_disk_and_keeps_its_counts(
    small_tmpfs: Callable[[int], SmallTmpfs], rig: Rig, eventually: Eventually
) -> None:
    """Its counters are mapped files: without room for them taken ahead the kernel killed it (SIGBUS)."""
    tmpfs = small_tmpfs(1 << 20)
    server = rig.upstream()
    rig.start("--metrics-directory", str(tmpfs.place / "metrics"))
    rig.configure(*(Endpoint(f"m{number}", server.port) for number in range(40)))
    rig.open("m0")
    with rig.client() as client:
        assert client.model("m0").status == 200
        eventually(
            lambda: counted(tmpfs.place / "metrics", "requests_total", model="m0", status="200", tier="warm") == 1
        )
        tmpfs.fill()
        for number in range(40):
            rig.open(f"m{number}")
            for _ in range(3):
                assert client.model(f"m{number}").status == 200
        assert client.model("nobody").status == 404
        # The sweep counts what is in flight as well; a second round comes after at least one that failed.
        eventually(lambda: "no room for the counters" in rig.log.read_text())
        assert client.model("m1").status == 200
        assert rig.started.poll() is None
        tmpfs.free()

        def ok(name: str) -> float | None:
            return counted(tmpfs.place / "metrics", "requests_total", model=name, status="200", tier="warm")

        eventually(lambda: [ok(f"m{number}") for number in range(40)] == [4.0, 4.0] + [3.0] * 38)
        waits = counted(tmpfs.place / "metrics", "request_seconds_count", model="m7")
        assert waits == 3


def test_room_is_taken_before_a_counter_is_made(tmp_path: Path) -> None:
    """No part of a file that is mapped may be a hole; also when it has grown, several times at once."""
    path = tmp_path / "counter_1.db"
    file = counters.AllocatedDict(str(path))
    for number in range(3000):
        file.write_value(f"counter {number} {'x' * 100}", float(number), 0.0)
        if number % 100 == 0:
            status = path.stat()
            assert status.st_blocks * 512 >= status.st_size
    file.close()
    again = {key: value for key, value, _, _ in MmapedDict.read_all_values_from_file(str(path))}
    assert len(again) == 3000
    assert again[f"counter 2999 {'x' * 100}"] == 2999.0


@pytest.mark.root
def test_where_there_is_no_room_nothing_changes(small_tmpfs: Callable[[int], SmallTmpfs]) -> None:
    tmpfs = small_tmpfs(256 << 10)
    file = counters.AllocatedDict(str(tmpfs.place / "one.db"))
    tmpfs.fill()
    made = 0
    with pytest.raises(OSError, match="No space left"):  # noqa: PT012 - one of many is the first that doesn't fit
        while True:
            file.write_value(f"{made} {'x' * 200}", 1.0, 0.0)
            made += 1
    assert 0 < made < 1000
    for number in range(made):  # those that are there are counted on
        file.write_value(f"{number} {'x' * 200}", 2.0, 0.0)
    with pytest.raises(OSError, match="No space left"):
        counters.AllocatedDict(str(tmpfs.place / "two.db"))
    assert not (tmpfs.place / "two.db").exists()
    tmpfs.free()
    file.write_value(f"{made} {'x' * 200}", 2.0, 0.0)
    assert [value for _, value, _ in file.read_all_values()] == [2.0] * (made + 1)
    file.close()
