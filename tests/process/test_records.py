"""What a supervisor left of a workload: read as it was written; what the workload itself may have put there is never believed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from kybernate.model.errors import KybernateError, NotFound
from kybernate.process.records import ExitRecord, read_exit, read_supervisor, supervisor_path

pytestmark = pytest.mark.unit

RAW: dict[str, Any] = {
    "name": "a",
    "pid": 4242,
    "start_time": 99,
    "boot_id": "b",
    "main_inside": 2,
    "isolated": True,
    "network": "none",
    "cgroup": "/sys/fs/cgroup/kybernate/a",
    "left_out": ["no seccomp"],
    "run_directory_inside": "/run/old/workloads/a",
    "layers": ["/run/k/workloads/a/layers/0"],
}


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    made = tmp_path / "workloads" / "a"
    made.mkdir(parents=True)
    (tmp_path / "records").mkdir()
    return made


def supervised(run_directory: Path, content: object) -> Path:
    supervisor_path(run_directory).write_text(content if isinstance(content, str) else json.dumps(content))
    return run_directory


def test_a_record_lies_where_no_workload_writes(run_directory: Path) -> None:
    assert supervisor_path(run_directory) == run_directory.parents[1] / "records" / "a.json"
    assert not supervisor_path(run_directory).is_relative_to(run_directory)


def test_it_is_read_as_it_was_written(run_directory: Path) -> None:
    record = read_supervisor(supervised(run_directory, RAW))
    assert (record.name, record.pid, record.start_time, record.boot_id, record.main_inside) == ("a", 4242, 99, "b", 2)
    assert (record.isolated, record.network, record.cgroup) == (True, "none", Path(RAW["cgroup"]))
    assert record.left_out == ("no seccomp",)
    assert record.run_directory_inside == Path("/run/old/workloads/a")
    assert record.layers == (Path(RAW["layers"][0]),)


def test_one_of_an_older_version_lacks_what_that_did_not_know(run_directory: Path) -> None:
    old = {key: value for key, value in RAW.items() if key not in ("run_directory_inside", "layers")}
    record = read_supervisor(supervised(run_directory, old | {"cgroup": None}))
    assert (record.run_directory_inside, record.layers, record.cgroup) == (None, (), None)


def test_where_nothing_was_launched_there_is_none(run_directory: Path) -> None:
    with pytest.raises(NotFound, match="no workload was launched in"):
        read_supervisor(run_directory)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("", id="empty"),
        pytest.param("[]", id="a list"),
        pytest.param("[" * 100_000, id="nested deeply"),
        pytest.param({}, id="nothing in it"),
        pytest.param(RAW | {"name": "b"}, id="another's"),
        pytest.param(RAW | {"pid": "x"}, id="no pid"),
        pytest.param(RAW | {"left_out": 3}, id="no list"),
        *(pytest.param({k: v for k, v in RAW.items() if k != key}, id=f"without {key}") for key in list(RAW)[:9]),
    ],
)
def test_a_damaged_one_says_what_to_do(run_directory: Path, content: object) -> None:
    with pytest.raises(KybernateError, match="is damaged") as refused:
        read_supervisor(supervised(run_directory, content))
    assert refused.value.hint == "remove the workload's directory to forget it"
    assert len(refused.value.message) < 300, "whatever stood there"


# -- how it ended --------------------------------------------------------------------------------------------------------


def ended(run_directory: Path, content: object) -> ExitRecord | None:
    (run_directory / "exit.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return read_exit(run_directory)


def test_an_end_is_a_status_and_when(run_directory: Path) -> None:
    assert ended(run_directory, {"status": 3, "signal": None, "time": 5.5}) == ExitRecord(3, None, 5.5)
    assert ended(run_directory, {"status": 137, "signal": 9, "time": 5}) == ExitRecord(137, 9, 5.0)


def test_a_status_is_one_byte_whatever_was_written(run_directory: Path) -> None:
    found = ended(run_directory, {"status": 65536 + 7, "signal": None, "time": 1})
    assert found is not None
    assert found.status == 7


def test_while_there_is_none_it_is_none(run_directory: Path) -> None:
    assert read_exit(run_directory) is None


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("", id="empty"),
        pytest.param("[1]", id="a list"),
        pytest.param({"status": 1, "signal": None}, id="no time"),
        pytest.param({"status": "x", "signal": None, "time": 1}, id="no number"),
        pytest.param({"status": 1e999, "signal": None, "time": 1}, id="an infinite status"),
        pytest.param({"status": 1, "signal": [], "time": 1}, id="no signal"),
        pytest.param("[" * 100_000, id="nested deeply"),
    ],
)
def test_nonsense_tells_nothing(run_directory: Path, content: object, caplog: pytest.LogCaptureFixture) -> None:
    assert ended(run_directory, content) is None
    assert "tells nothing" in caplog.text


def test_a_link_or_a_pipe_in_its_place_is_not_followed(run_directory: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(json.dumps({"status": 1, "signal": None, "time": 1}))
    (run_directory / "exit.json").symlink_to(secret)
    assert read_exit(run_directory) is None
    (run_directory / "exit.json").unlink()
    os.mkfifo(run_directory / "exit.json")
    assert read_exit(run_directory) is None, "and nobody waits for a writer"


def test_an_enormous_one_is_not_read_to_its_end(run_directory: Path) -> None:
    with (run_directory / "exit.json").open("w") as file:
        file.write('{"status": 1, "signal": null, "time": 1}')
        file.truncate(1 << 40)
    assert read_exit(run_directory) is None
