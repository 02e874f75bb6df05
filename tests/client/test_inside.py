"""Whether a program is inside a workload: by a file that is its own, and never by what anybody may claim."""

from __future__ import annotations

from pathlib import Path

import pytest

from kybernate.client.inside import workload_here

pytestmark = pytest.mark.unit


def here(directory: Path, content: str | None) -> str | None:
    if content is not None:
        (directory / "identity.env").write_text(content)
    return workload_here({"KYBERNATE_RUN_DIRECTORY": str(directory)})


@pytest.mark.parametrize(
    ("content", "name"),
    [
        pytest.param("KYBERNATE_WORKLOAD=a\n", "a", id="its name"),
        pytest.param(
            "OTHER=x\nKYBERNATE_WORKLOAD=clone-2\nKYBERNATE_WORKLOAD=b\n", "clone-2", id="the first that is said"
        ),
        pytest.param("XKYBERNATE_WORKLOAD=a\n", None, id="another variable"),
        pytest.param("KYBERNATE_WORKLOAD=\n", None, id="an empty name"),
        pytest.param("KYBERNATE_WORKLOAD=a\x1b[31m\n", None, id="a name that a terminal would obey"),
        pytest.param("", None, id="nothing in it"),
        pytest.param("x" * 5000 + "\nKYBERNATE_WORKLOAD=a\n", None, id="only its beginning is read"),
        pytest.param(None, None, id="no such file"),
    ],
)
def test_a_workload_knows_its_name_by_the_file_of_its_own(
    tmp_path: Path, content: str | None, name: str | None
) -> None:
    assert here(tmp_path, content) == name


@pytest.mark.parametrize(
    "environment", [{}, {"KYBERNATE_RUN_DIRECTORY": ""}, {"KYBERNATE_RUN_DIRECTORY": "/no\0where"}]
)
def test_elsewhere_there_is_none(environment: dict[str, str]) -> None:
    assert workload_here(environment) is None
