"""Who is left after all were to be ended, in words."""

from __future__ import annotations

import pytest
from tests.agent.building import A, B

from kybernate.agent.workloads.stopping import list_left
from kybernate.model.types import HostPid

pytestmark = pytest.mark.unit


def test_each_is_named_with_its_processes_and_why_it_could_not_be_stopped() -> None:
    left = {A: [HostPid(7), HostPid(8)], B: [HostPid(9)]}
    assert list_left(left, {B: "it is in a switch"}) == "a (process 7, 8); b (process 9): it is in a switch"


def test_a_reason_of_somebody_who_ended_all_the_same_is_not_told() -> None:
    assert list_left({A: [HostPid(7)]}, {B: "it is in a switch"}) == "a (process 7)"


def test_nobody_left_is_nothing_said() -> None:
    assert list_left({}, {A: "it hangs"}) == ""
