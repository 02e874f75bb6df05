"""The policy after an agent's death, as a table. What the agent does about each verdict is tested with real processes
in test_faults.py."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.cuda.residual import ResidualState
from kybernate.cuda.wire import ProcessState
from kybernate.engine.recovery import Facts, Verdict, Witness, decide

pytestmark = pytest.mark.unit

OPEN = Witness(ProcessState.OPEN)
QUIET = Witness(ProcessState.QUIET)
TAKING_BACK = Witness(ProcessState.RELEASED)
HALF = Witness(ProcessState.RELEASED, partial=True)
GONE = Witness(ProcessState.RELEASED, committed=True, complete=True)
GONE_BADLY = Witness(ProcessState.RELEASED, committed=True)
SILENT = Witness(None)
FROZEN = Witness(None, complete=True)

RUNNING, LOCKED, AWAY = ResidualState.RUNNING, ResidualState.LOCKED, ResidualState.CHECKPOINTED


@pytest.mark.parametrize(
    ("facts", "verdict"),
    [
        pytest.param(Facts([OPEN], [RUNNING], manifest=False), Verdict.RUNNING, id="nothing was going on"),
        pytest.param(Facts([OPEN], [RUNNING], manifest=True), Verdict.RUNNING, id="died while planning"),
        pytest.param(
            Facts([QUIET], [RUNNING], manifest=True), Verdict.RUNNING, id="died before release, opens by itself"
        ),
        pytest.param(Facts([TAKING_BACK], [RUNNING], manifest=True), Verdict.RUNNING, id="maps again by itself"),
        pytest.param(Facts([SILENT], [LOCKED], manifest=True), Verdict.RELEASE_DRIVER, id="died after lock"),
        pytest.param(
            Facts([SILENT], [AWAY], manifest=True), Verdict.RELEASE_DRIVER, id="died after checkpoint, copy unfinished"
        ),
        pytest.param(
            Facts([SILENT], [AWAY], manifest=True),
            Verdict.RELEASE_DRIVER,
            id="copied but nothing discarded",
        ),
        pytest.param(Facts([GONE], [AWAY], manifest=True), Verdict.FINISH_PAUSE, id="died before freeze"),
        pytest.param(Facts([GONE], [RUNNING], manifest=True), Verdict.FINISH_PAUSE, id="died while resuming"),
        pytest.param(Facts([GONE, OPEN], [AWAY, AWAY], manifest=True), Verdict.BRING_BACK, id="half discarded"),
        pytest.param(Facts([FROZEN], [AWAY], manifest=True, frozen=True), Verdict.PAUSED, id="paused"),
        pytest.param(Facts([SILENT], [AWAY], manifest=False, frozen=True), Verdict.LOST, id="paused, manifest gone"),
        pytest.param(Facts([GONE], [RUNNING], manifest=False), Verdict.LOST, id="memory gone, manifest gone"),
        pytest.param(Facts([GONE_BADLY], [AWAY], manifest=True), Verdict.LOST, id="memory gone, marks missing"),
        pytest.param(Facts([HALF], [AWAY], manifest=True), Verdict.FINISH_COPY, id="part of it discarded"),
        pytest.param(Facts([HALF, GONE], [AWAY], manifest=True), Verdict.FINISH_COPY, id="one wholly, one partly"),
        pytest.param(Facts([HALF], [AWAY], manifest=False), Verdict.LOST, id="part of it discarded, manifest gone"),
        pytest.param(Facts([], [AWAY], manifest=True), Verdict.FINISH_PAUSE, id="driver backend, before freeze"),
        pytest.param(Facts([], [AWAY], manifest=True, frozen=True), Verdict.PAUSED, id="driver backend, paused"),
        pytest.param(Facts([], [AWAY, LOCKED], manifest=True), Verdict.RELEASE_DRIVER, id="driver backend, half-way"),
        pytest.param(Facts([], [LOCKED], manifest=False), Verdict.RELEASE_DRIVER, id="driver backend, locked"),
        pytest.param(Facts([], [RUNNING], manifest=False), Verdict.RUNNING, id="driver backend, running"),
        pytest.param(Facts([], [], manifest=False), Verdict.RUNNING, id="no CUDA in it"),
    ],
)
def test_verdict(facts: Facts, verdict: Verdict) -> None:
    assert decide(facts) is verdict


STATES = st.sampled_from([None, *ProcessState])
WITNESSES = st.builds(Witness, state=STATES, committed=st.booleans(), partial=st.booleans(), complete=st.booleans())
FACTS = st.builds(
    Facts,
    processes=st.lists(WITNESSES, max_size=4),
    residuals=st.lists(st.sampled_from(ResidualState), max_size=4),
    manifest=st.booleans(),
    frozen=st.booleans(),
)


@given(FACTS)
def test_whatever_is_true_of_it_there_is_one_verdict_and_content_is_never_given_up_that_is_there(facts: Facts) -> None:
    verdict = decide(facts)
    given_up = [each for each in facts.processes if each.committed or each.partial]
    if verdict is Verdict.LOST:
        assert given_up or facts.frozen, "a process that has its memory is not lost"
        assert not facts.complete
    if verdict in (Verdict.FINISH_PAUSE, Verdict.BRING_BACK, Verdict.FINISH_COPY):
        assert facts.manifest, "nothing is finished without knowing where the content lies"
    if verdict is Verdict.RUNNING:
        assert not any(each.committed for each in facts.processes)
        assert ResidualState.CHECKPOINTED not in facts.residuals
    if verdict is Verdict.PAUSED:
        assert facts.frozen


@given(FACTS, st.randoms())
def test_the_order_of_witnesses_says_nothing(facts: Facts, source: Random) -> None:
    processes, residuals = list(facts.processes), list(facts.residuals)
    source.shuffle(processes)
    source.shuffle(residuals)
    assert decide(replace(facts, processes=processes, residuals=residuals)) is decide(facts)
