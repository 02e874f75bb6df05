"""What can't be launched is refused before anything is done, each in one line that names the workload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kybernate.model.errors import BadInput
from kybernate.model.types import WorkloadName
from kybernate.process.specs import LaunchSpec, Network

pytestmark = pytest.mark.unit

RUN = Path("/run/kybernate/workloads/a")


def spec(**given: Any) -> LaunchSpec:
    defaults: dict[str, Any] = {"name": WorkloadName("a"), "argv": ["x"], "run_directory": RUN}
    return LaunchSpec(**(defaults | given))


def test_a_plain_one_is_isolated_and_sees_loopback_alone() -> None:
    made = spec()
    assert (made.isolated, made.network, made.directory) == (True, Network.NONE, Path("/"))
    assert made.state_directory == Path("/run/kybernate")
    assert made.layer_directories == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        pytest.param({"name": "A"}, "bad workload name", id="a name that is none"),
        pytest.param({"argv": []}, "no command", id="nothing to run"),
        pytest.param({"argv": ["", "x"]}, "no command", id="an empty program"),
        pytest.param({"argv": ["x", "a\0b"]}, "a NUL byte", id="NUL in an argument"),
        pytest.param({"environment": {"A\0": "b"}}, "a NUL byte", id="NUL in a name"),
        pytest.param({"environment": {"A": "b\0"}}, "a NUL byte", id="NUL in a value"),
        pytest.param({"environment": {"": "b"}}, "bad variable name ''", id="a variable without a name"),
        pytest.param({"environment": {"A=B": "c"}}, "bad variable name 'A=B'", id="a name that is two"),
        pytest.param({"directory": Path("srv")}, "the directory srv must be absolute", id="a relative directory"),
        pytest.param({"directory": Path("/a/../b")}, "without '..'", id="a directory that leads up"),
        pytest.param({"run_directory": Path("/run/k/workloads/b")}, "bad run directory", id="another's run directory"),
        pytest.param({"run_directory": Path("/run/a")}, "bad run directory", id="one without a state directory"),
        pytest.param(
            {"run_directory": Path("/" + "x" * 90) / "workloads" / "a"},
            "too long for a socket's path",
            id="a long path",
        ),
        pytest.param({"uid": -1}, "a negative user or group number", id="a negative user"),
        pytest.param({"groups": [4, -2]}, "a negative user or group number", id="a negative group"),
        pytest.param({"layers": [Path("data")]}, "no layer can be laid over data", id="a relative layer"),
        pytest.param({"layers": [Path("/")]}, "no layer can be laid over /", id="a layer over everything"),
        pytest.param({"layers": [Path("/a/../b")]}, "no layer can be laid over", id="a layer that leads up"),
        pytest.param(
            {"layers": [Path("/run")]}, "where it would be kept, is in it", id="a layer over where it is kept"
        ),
        pytest.param(
            {"layers": [Path("/data")], "layers_at": Path("/data/layers")},
            "where it would be kept",
            id="the same, elsewhere",
        ),
        pytest.param({"layers_at": Path("layers")}, "must be absolute", id="a relative place for layers"),
    ],
)
def test_what_can_not_be_right_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput) as refused:
        spec(**given)
    assert words in refused.value.message


def test_a_path_is_as_long_as_a_socket_in_it_allows_in_bytes() -> None:
    fits = Path("/" + "x" * 66) / "workloads" / "a"
    longest = f"{fits}/control/4194304.sock"
    assert len(longest) <= 107
    spec(run_directory=fits)
    with pytest.raises(BadInput, match="too long"):
        spec(run_directory=Path("/" + "ä" * 66) / "workloads" / "a")


def test_each_layer_has_a_place_and_the_kernels_own_beside_it() -> None:
    layers = [Path("/data"), Path("/models")]
    assert spec(layers=layers).layer_directories == [
        (RUN / "layers" / "0", RUN / "layers" / "0.work"),
        (RUN / "layers" / "1", RUN / "layers" / "1.work"),
    ]
    assert spec(layers=layers, layers_at=Path("/disk")).layer_directories[1] == (Path("/disk/1"), Path("/disk/1.work"))
