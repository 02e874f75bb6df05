"""What the link of a simulated GPU is said to do: what was set for it, and nothing where that makes no sense."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.agent.building import gpu

from kybernate.cuda.simulated import LINK_VARIABLE
from kybernate.doctor.links import look
from kybernate.model.types import GIB

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("setting", "rate"),
    [
        pytest.param("2.5", 2.5 * GIB, id="GiB a second"),
        pytest.param("", None, id="nothing was set"),
        pytest.param("fast", None, id="no number"),
        pytest.param("0", None, id="no speed"),
        pytest.param("-1", None, id="none below that"),
        pytest.param("nan", None, id="not a number"),
        pytest.param("inf", None, id="no link is that fast"),
    ],
)
def test_a_simulated_link_proves_no_speed(setting: str, rate: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LINK_VARIABLE, setting)
    (found,) = look([replace(gpu(), simulated=True)])
    assert (found.gpu, found.to_gpu, found.to_host) == ("GPU-0", rate, rate)
    assert found.source == ("unknown" if rate is None else "simulated")


def test_without_gpus_there_are_no_links() -> None:
    assert look([]) == []
