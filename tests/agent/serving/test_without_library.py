"""A model whose command drops LD_PRELOAD takes turns with others under one address."""

from __future__ import annotations

from collections.abc import Callable

import httpx2
import pytest
from tests.agent.serving.conftest import ServingAgent, free_port, server
from tests.agent.serving.test_end_to_end import complete, text_of, up
from tests.agent.vram.test_without_library import DROPS
from tests.conftest import SLOWER, Eventually

from kybernate.model.types import WorkloadState

pytestmark = [pytest.mark.root, pytest.mark.timeout(300 * SLOWER)]


def test_a_model_without_the_library_takes_turns_with_one_that_has_it(
    begin: Callable[..., ServingAgent], eventually: Eventually
) -> None:
    has, has_not = server("has"), server("bare")
    has_not["command"] = [*DROPS, *has_not["command"]]  # type: ignore[misc]
    agent = begin(port=free_port(), models={"has": has, "bare": has_not})
    up(agent, eventually)
    with httpx2.Client(timeout=200) as http:
        first = {name: text_of(complete(http, agent, name)) for name in ("bare", "has")}
        assert agent.client.workload("bare").state is WorkloadState.PAUSED
        for name in ("bare", "has") * 3:
            assert text_of(complete(http, agent, name)) == first[name]
    assert agent.client.workload("bare").exit_status is None, "it was paused each time, not started anew"
    assert len([event for event in agent.client.events("bare") if event.kind == "started"]) == 1
