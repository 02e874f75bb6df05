"""Models and their queues, as the agent that serves them tells."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from playwright.sync_api import Browser, expect
from tests.agent.serving.conftest import ServingAgent, server, serving_agent, training
from tests.conftest import Eventually
from tests.ui.conftest import Dashboard, free_port

from kybernate.model.types import MIB

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


@pytest.fixture
def served(browser: Browser) -> Iterator[Dashboard]:
    api = {"listen": f"127.0.0.1:{free_port()}"}
    models = {"chat": server("chat", size=64 * MIB, priority=7), "code": server("code", size=64 * MIB, port=8001)}
    with (
        serving_agent(agent={"api": api}, models=models, jobs={"trainer": training()}) as agent,
        ExitStack() as contexts,
    ):
        dashboard = Dashboard(agent, browser, contexts)
        yield dashboard
        assert dashboard.problems == []


def test_a_request_is_seen_from_its_waiting_to_its_end(served: Dashboard, eventually: Eventually) -> None:
    agent = served.agent
    assert isinstance(agent, ServingAgent)
    page = served.open()
    row = served.row(page, "chat")
    expect(row).to_contain_text("interactive model, priority 7")
    expect(row.locator(".pill")).to_have_text("stopped")
    expect(served.row(page, "trainer")).to_contain_text("batch job")
    peer = agent.peer()
    eventually(lambda: peer.configured)
    peer.request("chat", waiting=3)
    expect(row).to_contain_text("3 waiting")
    expect(row.locator(".pill")).to_have_text("running", timeout=60_000)
    eventually(lambda: peer.is_open("chat"), timeout_s=60)
    peer.answer("chat")
    expect(row).to_contain_text("idle")
    expect(page.locator("#classes")).to_contain_text("interactive")
    page.get_by_role("button", name="Pause chat").click()
    expect(row.locator(".pill")).to_have_text("paused", timeout=60_000)
    assert agent.client.workload("chat").state == "paused"
    expect(page.get_by_role("button", name="Resume chat")).to_have_class("primary")  # nothing else brings it back


def test_a_model_is_started_and_explained_before_anybody_asks_for_it(served: Dashboard) -> None:
    page = served.open()
    row = served.row(page, "code")
    expect(row.locator(".pill")).to_have_text("stopped")
    page.get_by_label("More of code").click()
    expect(page.locator("#details .why")).to_contain_text("has not been started yet")
    page.keyboard.press("Escape")
    row.focus()
    page.keyboard.press("s")
    expect(row.locator(".pill")).to_have_text("running", timeout=60_000)
    expect(page.get_by_role("button", name="Start code")).to_have_count(0)
    expect(page.get_by_role("button", name="Pause code")).to_be_visible()
