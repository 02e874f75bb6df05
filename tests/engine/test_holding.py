"""Who may launch while a process tree is being made quiet: the policy alone, against models of what runs in a tree."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.engine.holding import BURST, FIRST_S, Rounds
from kybernate.model.types import HostPid

pytestmark = pytest.mark.unit

TIMEOUT_S = 30.0


@dataclass
class Collectives:
    """Processes whose kernel number k ends when all of them have launched number k."""

    launched: dict[HostPid, int]
    steps: int = 0
    reopened: int = 0
    seconds: float = FIRST_S
    rounds: Rounds = field(default_factory=lambda: Rounds(TIMEOUT_S))

    def idle(self) -> dict[HostPid, bool]:
        least = min(self.launched.values())
        return {pid: count <= least for pid, count in self.launched.items()}

    def run(self) -> bool:
        """False: the time was over before all were idle."""
        while not all((idle := self.idle()).values()):
            if self.seconds > TIMEOUT_S:
                return False
            now = self.rounds.next(idle, self.seconds)
            self.reopened += now.reopen
            self.seconds += now.timeout_s
            for pid in now.step:
                self.launched[pid] += 1
                self.steps += 1
        return True


@given(st.lists(st.integers(0, 300), min_size=2, max_size=8))
def test_those_that_are_behind_catch_up(counts: list[int]) -> None:
    tree = Collectives({HostPid(pid): count for pid, count in enumerate(counts)})
    most = max(counts)
    assert tree.run()
    assert set(tree.launched.values()) == {most}, "nobody launches more than the first of them had launched"
    assert tree.steps == sum(most - count for count in counts)
    assert tree.reopened == 0


def test_a_lone_process_with_much_to_do_is_left_alone_first() -> None:
    rounds = Rounds(TIMEOUT_S)
    for tenths in range(70):
        now = rounds.next({HostPid(1): False}, tenths / 10)
        assert not now.step
        assert not now.reopen


def test_the_gpus_of_one_process_may_wait_for_each_other() -> None:
    """Later it may launch some more, in bursts; it never runs free: what ran then would have to end too."""
    rounds = Rounds(TIMEOUT_S)
    now, steps = FIRST_S, 0
    while now < TIMEOUT_S:
        decided = rounds.next({HostPid(1): False}, now)
        assert not decided.reopen
        steps += len(decided.step)
        now += decided.timeout_s
    assert steps == 3 * BURST


def test_what_single_launches_do_not_resolve_a_run_of_all_may() -> None:
    rounds = Rounds(TIMEOUT_S)
    now, reopened = FIRST_S, []
    while now < TIMEOUT_S:
        decided = rounds.next({HostPid(1): False, HostPid(2): True}, now)
        if decided.reopen:
            reopened.append(int(now))
        now += decided.timeout_s
    assert reopened == [15, 22]
