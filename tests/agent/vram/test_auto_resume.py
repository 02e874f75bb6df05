"""Who is resumed unasked: only what the arbiter or a recovery paused, once it has fitted for a while, and not again at once after a
failure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
from tests.agent.building import GPU, NOW, A, B, Clock, Held, entry, gpu, paused

from kybernate.agent.records.ledger import ARBITER, RECOVERY, USER, Entry
from kybernate.agent.vram.auto_resume import AutoResume
from kybernate.agent.vram.vram import Vram
from kybernate.model.types import GIB, GpuUuid, WorkloadName, WorkloadState
from kybernate.settings import ArbiterSettings, VramSettings

pytestmark = pytest.mark.unit

SETTINGS = ArbiterSettings(settle=1.0, min_run=5.0)


class Node:
    """100 GiB on one GPU, all of it handed out; what somebody else holds of it stands in `other`."""

    def __init__(
        self,
        *,
        settings: ArbiterSettings = SETTINGS,
        wanted: Callable[[WorkloadName], Mapping[GpuUuid, int]] = lambda _: {},
    ) -> None:
        self.held = Held()
        vram = Vram(gpus=[gpu()], settings=VramSettings(reserve=0), usage=self.held, clock=Clock())
        self.resumes = AutoResume(vram=vram, settings=settings, wanted=wanted)

    def hold(self, gib: float) -> None:
        self.held.sizes = {("other", GPU): int(gib * GIB)}

    def choose(
        self, *entries: Entry, now: float, somebody_waits: bool = False, by_policy: bool = False
    ) -> WorkloadName | None:
        return self.resumes.choose(entries, now=now, somebody_waits=somebody_waits, by_policy=by_policy)


def one(name: str = "a", gib: float = 10, **given: object) -> Entry:
    return paused(name, gib, **({"paused_by": ARBITER} | given))


def test_it_must_have_fitted_for_as_long_as_the_settings_say() -> None:
    node = Node()
    assert node.choose(one(), now=NOW) is None
    assert node.choose(one(), now=NOW + 0.99) is None
    assert node.choose(one(), now=NOW + 1.0) == A


def test_the_time_begins_anew_when_it_did_not_fit_meanwhile() -> None:
    node = Node()
    node.choose(one(), now=NOW)
    node.hold(95)
    assert node.choose(one(), now=NOW + 5) is None
    node.hold(0)
    assert node.choose(one(), now=NOW + 6) is None
    assert node.choose(one(), now=NOW + 7) == A


def test_the_time_begins_anew_when_it_ran_meanwhile() -> None:
    node = Node()
    node.choose(one(), now=NOW)
    node.choose(entry("a"), now=NOW + 0.5)
    assert node.choose(one(), now=NOW + 1.4) is None


def test_what_it_asked_for_when_it_was_paused_must_fit_beside_what_it_held() -> None:
    wants: dict[GpuUuid, int] = {GPU: 85 * GIB}
    node = Node(wanted=lambda _: wants)
    node.choose(one(gib=20), now=NOW)
    assert node.choose(one(gib=20), now=NOW + 9) is None
    wants[GPU] = 80 * GIB
    node.choose(one(gib=20), now=NOW + 10)
    assert node.choose(one(gib=20), now=NOW + 11) == A


def test_the_longest_paused_goes_first() -> None:
    node = Node()
    both = (one("a", since=NOW - 10), one("b", since=NOW - 20))
    node.choose(*both, now=NOW)
    assert node.choose(*both, now=NOW + 2) == B


@pytest.mark.parametrize(
    ("who", "auto_resume", "by_policy", "comes"),
    [
        pytest.param(ARBITER, True, False, True, id="what the arbiter paused"),
        pytest.param(RECOVERY, True, False, True, id="what waits for its recovery"),
        pytest.param(USER, True, False, False, id="never what a person paused"),
        pytest.param(None, True, False, False, id="nor of which nobody knows who did"),
        pytest.param(ARBITER, False, False, False, id="not by the arbiter where that is switched off"),
        pytest.param(RECOVERY, False, False, True, id="a recovery is no matter of that switch"),
        pytest.param(ARBITER, True, True, False, id="a policy does it instead"),
        pytest.param(RECOVERY, True, True, True, id="but recovers nothing"),
    ],
)
def test_whose_pause_is_undone_unasked(who: str | None, *, auto_resume: bool, by_policy: bool, comes: bool) -> None:
    node = Node(settings=ArbiterSettings(settle=0.0, auto_resume=auto_resume))
    assert (node.choose(one(paused_by=who), now=NOW, by_policy=by_policy) == A) is comes


def test_nobody_comes_while_an_allocation_waits() -> None:
    node = Node(settings=ArbiterSettings(settle=0.0))
    assert node.choose(one(), now=NOW, somebody_waits=True) is None
    assert node.choose(one(), now=NOW) == A


@pytest.mark.parametrize("state", [state for state in WorkloadState if state is not WorkloadState.PAUSED])
def test_only_what_is_paused_comes_back(state: WorkloadState) -> None:
    node = Node(settings=ArbiterSettings(settle=0.0))
    assert node.choose(entry("a", state, paused_by=ARBITER), now=NOW) is None


# -- failures ------------------------------------------------------------------------------------------------------------


def waits(node: Node, now: float) -> float:
    """Seconds after `now` until it is chosen, to a tenth."""
    for tenths in range(2000):
        if node.choose(one(), now=now + tenths / 10) == A:
            return tenths / 10
    raise AssertionError("never")


def test_after_each_failure_it_is_left_alone_for_twice_as_long_up_to_a_minute() -> None:
    node = Node(settings=ArbiterSettings(settle=0.0))
    now, pauses = NOW, []
    for _ in range(7):
        node.resumes.failed(A, now=now)
        pauses.append(waits(node, now))
        now += 200
    assert pauses == [2, 4, 8, 16, 32, 60, 60]


def test_once_it_came_back_the_next_failure_is_a_first_one() -> None:
    node = Node(settings=ArbiterSettings(settle=0.0))
    node.resumes.failed(A, now=NOW)
    node.resumes.failed(A, now=NOW)
    node.resumes.came_back(A)
    node.resumes.failed(A, now=NOW + 100)
    assert waits(node, NOW + 100) == 2


def test_forgotten_it_is_as_new() -> None:
    node = Node(settings=ArbiterSettings(settle=0.0))
    node.resumes.failed(A, now=NOW)
    node.resumes.forget(A)
    assert node.choose(one(), now=NOW) == A


# -- turns ---------------------------------------------------------------------------------------------------------------


def test_whoever_gave_way_comes_back_after_a_turn_of_the_others() -> None:
    node = Node()
    node.resumes.gave_way(A, now=NOW)
    entries = {A: one()}
    assert node.resumes.had_others_turn(entries, now=NOW + 4.9) is None
    assert node.resumes.had_others_turn(entries, now=NOW + 5.0) == A


def test_a_failure_of_its_resume_gives_the_others_another_turn() -> None:
    node = Node()
    node.resumes.gave_way(A, now=NOW)
    node.resumes.failed(A, now=NOW + 5)
    assert node.resumes.had_others_turn({A: one()}, now=NOW + 9.9) is None
    assert node.resumes.had_others_turn({A: one()}, now=NOW + 10) == A


@pytest.mark.parametrize(
    "entries",
    [
        pytest.param({}, id="it has gone"),
        pytest.param({A: entry("a")}, id="it runs"),
        pytest.param({A: one(paused_by=USER)}, id="a person has paused it meanwhile"),
    ],
)
def test_whoever_is_no_longer_away_for_others_has_no_turn_to_claim(entries: dict[WorkloadName, Entry]) -> None:
    node = Node()
    node.resumes.gave_way(A, now=NOW)
    assert node.resumes.had_others_turn(entries, now=NOW + 100) is None
    assert node.resumes.had_others_turn({A: one()}, now=NOW + 100) is None, "and that is not remembered"
