"""What a person is told when no agent answers, answers too late, or goes away in the middle."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest

from kybernate.client.transport import CONNECT_TIMEOUT_S, in_our_words, timeout
from kybernate.model.errors import AgentAway, KybernateError

pytestmark = pytest.mark.unit

PATH = Path("/run/kybernate/agent.sock")


@pytest.mark.parametrize("error", [httpx2.ConnectError("x"), httpx2.ConnectTimeout("x")])
def test_nobody_there_is_no_agent(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KYBERNATE_RUN_DIRECTORY", raising=False)
    found = in_our_words(error, PATH)
    assert type(found) is AgentAway
    assert (found.message, found.hint) == (f"no agent answers on {PATH}", "start one with `kybernate up`")


def test_inside_a_workload_it_says_where_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "identity.env").write_text("KYBERNATE_WORKLOAD=train\n")
    monkeypatch.setenv("KYBERNATE_RUN_DIRECTORY", str(tmp_path))
    found = in_our_words(httpx2.ConnectError("x"), PATH)
    assert found.message.endswith("this is inside workload train, which doesn't see its agent")
    assert found.hint == "run the command outside of it"


@pytest.mark.parametrize("error", [httpx2.ReadTimeout("x"), httpx2.WriteTimeout("x"), httpx2.PoolTimeout("x")])
def test_one_that_takes_too_long_is_there_all_the_same(error: Exception) -> None:
    found = in_our_words(error, PATH)
    assert type(found) is KybernateError, "it is not away"
    assert found.message == f"the agent on {PATH} did not answer in time"


@pytest.mark.parametrize("error", [httpx2.ReadError("x"), httpx2.RemoteProtocolError("x")])
def test_one_that_breaks_off_went_away(error: Exception) -> None:
    found = in_our_words(error, PATH)
    assert type(found) is AgentAway
    assert "went away in the middle of the answer" in found.message


def test_connecting_has_a_time_of_its_own_however_long_an_answer_may_take() -> None:
    assert timeout(3600.0).read == 3600.0
    assert timeout(None).read is None
    assert timeout(None).connect == timeout(3600.0).connect == CONNECT_TIMEOUT_S
