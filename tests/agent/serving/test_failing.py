"""What is said of a model or a job that fails: its own last words, and when it starts again."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial

import pytest
from tests.agent.serving.conftest import ServingAgent, server
from tests.agent.test_agent import as_nobody
from tests.cli.test_command_line import kybernate
from tests.conftest import Eventually

from kybernate.model.api_serving import ServedView

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

Begin = Callable[..., ServingAgent]

LAST_WORDS = "\033[31mValueError: no such file: /models/secret.gguf\033[0m"
ENDS = [sys.executable, "-c", f"import sys; print({LAST_WORDS!r}); print(); sys.exit(3)"]


def served(agent: ServingAgent, name: str) -> ServedView:
    return next(each for each in agent.client.serving().served if each.name == name)


def test_a_models_last_line_of_output_is_in_the_message(begin: Begin, eventually: Eventually) -> None:
    agent = begin(models={"a": {**server("a"), "command": ENDS}})
    peer = agent.peer()
    peer.request("a", waiting=1)
    eventually(lambda: "a" in peer.refusals, timeout_s=90, what="a refusal")
    why = "a ended before it was ready, with status 3"
    assert why in peer.refusals["a"].message
    assert "secret" not in peer.refusals["a"].message, "whoever asks over the network doesn't read its output"
    for text in (served(agent, "a").reason, agent.client.explain("a").text):
        assert f"{why}: ValueError: no such file: /models/secret.gguf" in text
    assert served(agent, "a").failing


def test_what_a_model_says_is_its_owners(begin: Begin, eventually: Eventually) -> None:
    """Neither other users of the socket nor those who ask over the network read a line of its output, or of its probe's."""
    complains = [sys.executable, "-c", "raise SystemExit('Bearer secret-token is refused')"]
    agent = begin(
        models={
            "a": {**server("a"), "command": ENDS},
            "b": {**server("b"), "ready": complains, "ready_timeout": 0.1},
        }
    )
    agent.state.socket.chmod(0o666)
    agent.state.root.parent.chmod(0o755)
    peer = agent.peer()
    for name, why in (("a", "with status 3"), ("b", "was not ready within 0.1 s")):
        peer.request(name, waiting=1)
        eventually(partial(peer.refusals.__contains__, name), timeout_s=90, what="a refusal")
        assert why in peer.refusals[name].message
        assert "secret" not in peer.refusals[name].message
        assert "secret" in served(agent, name).reason, "its owner sees it"
        for path in ("/v1/serving", f"/v1/workloads/{name}/explain", "/v1/events", f"/v1/workloads/{name}/events"):
            told = as_nobody(agent, path, {}, method="GET")
            assert " 200 " in told, told
            assert why in told, path
            assert "secret" not in told, path


def test_a_model_that_says_nothing_is_said_to_have_said_nothing(begin: Begin, eventually: Eventually) -> None:
    agent = begin(models={"a": {**server("a"), "command": [sys.executable, "-c", "raise SystemExit(4)"]}})
    agent.peer().request("a", waiting=1)
    said = eventually(lambda: served(agent, "a").reason, timeout_s=90)
    assert "ended before it was ready, with status 4, and said nothing" in said


def test_a_job_in_back_off_says_when_it_starts_again(begin: Begin, eventually: Eventually) -> None:
    agent = begin(jobs={"train": {"command": [sys.executable, "-c", "raise SystemExit(1)"], "restart": "always"}})
    now = agent.client.serving().time
    one = eventually(lambda: served(agent, "train") if served(agent, "train").again_at else None, timeout_s=60)
    assert one is not None
    assert one.again_at is not None
    assert one.again_at > now
    assert re.fullmatch(r"ended with status 1; starts again at \d\d:\d\d:\d\d", one.reason)

    def shown(*words: str) -> str:
        return kybernate(*words, state=agent.state.root).stdout

    eventually(lambda: re.search(r"^train +exited \(again in \d+ s\)", shown("ps"), re.MULTILINE), timeout_s=90)
    eventually(lambda: re.search(r"starts again at \d\d:\d\d:\d\d", shown("explain", "train")), timeout_s=90)


def test_a_job_that_is_not_started_again_says_nothing_of_it(begin: Begin, eventually: Eventually) -> None:
    agent = begin(jobs={"train": {"command": [sys.executable, "-c", "raise SystemExit(1)"]}})
    said = eventually(lambda: served(agent, "train").reason, timeout_s=60)
    assert said == "ended with status 1; `kybernate start train` runs it again"
    assert served(agent, "train").again_at is None
