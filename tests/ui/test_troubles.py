"""What fails is seen first and says why; nothing sticks out, and everything can be read, at every width and in both themes."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect
from tests.conftest import Eventually
from tests.ui.conftest import Dashboard
from tests.ui.test_page import violations

from kybernate.model.types import MIB

pytestmark = pytest.mark.timeout(300)

WIDTHS = range(360, 1921, 20)
WHY = (
    "workload vision ended before it was ready, with status 3: ModuleNotFoundError: No module named 'vllm'; "
    "`kybernate logs vision` has it"
)

STICKS_OUT = """() => {
  const clips = (element, card) => {
    for (let each = element.parentElement; each && each !== card; each = each.parentElement) {
      if (getComputedStyle(each).overflowX !== "visible") return true;
    }
    return false;
  };
  const found = [];
  for (const card of document.querySelectorAll(".card")) {
    const right = card.getBoundingClientRect().right - parseFloat(getComputedStyle(card).paddingRight) + 1;
    for (const element of card.querySelectorAll("*")) {
      const box = element.getBoundingClientRect();
      if (box.width > 2 && box.right > right && !clips(element, card)) {
        found.push(`${element.tagName}.${element.className} ${box.right} > ${right}`);
      }
    }
  }
  return found;
}"""

OVERLAP = """() => [...document.querySelectorAll(".row-one")].flatMap((row) => {
  const boxes = [...row.children]
    .map((cell) => [cell.className, cell.getBoundingClientRect()])
    .filter(([, box]) => box.width && box.height);
  const beside = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) <= 1;
  const below = (a, b) => Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) <= 1;
  return boxes.flatMap(([name, a], i) => boxes.slice(i + 1)
    .filter(([, b]) => !beside(a, b) && !below(a, b))
    .map(([other]) => `${row.dataset.name}: ${name} over ${other}`));
})"""


def served(name: str, **more: object) -> dict[str, object]:
    return {
        "name": name,
        "kind": "model",
        "klass": "interactive",
        "priority": 0,
        "state": "stopped",
        "tier": None,
        "open": False,
        "waiting": 0,
        "oldest_wait_s": None,
        "in_flight": 0,
        "service_s": None,
        "bytes": 24 << 30,
        "cost": {"leave_s": 12.34, "come_s": 123.4, "come_staged_s": None},
        "staged": False,
        "wanted": False,
        "pinned": False,
        "reason": "",
        "failing": False,
        "again_at": None,
        "usage": {"resident_s": 5.0, "busy_s": 2.0, "byte_s": 1.0},
        **more,
    }


SERVING = {
    "time": 0,
    "listen": "127.0.0.1:8080",
    "policy": "balanced",
    "served": [
        served("chat", waiting=128, in_flight=64, oldest_wait_s=12.5),
        served("vision", failing=True, reason=WHY),
        served("a-model-with-a-long-name-that-says-everything-about-it", klass="batch", priority=100),
    ],
    "classes": [{"klass": "interactive", "usage": {"resident_s": 5.0, "busy_s": 2.0, "byte_s": 1.0}, "share": 1.0}],
    "workers": [],
    "staging": {"budget_bytes": 1, "used_bytes": 0, "hits": 1, "misses": 0},
    "notes": ["worker 1 doesn't listen; `kybernate logs` says why"],
}


def with_models(page: Page) -> None:
    page.route("**/openapi.json", lambda route: route.fulfill(json={"paths": {"/v1/serving": {}}}))
    page.route("**/v1/serving", lambda route: route.fulfill(json=SERVING))


@pytest.fixture
def troubled(dashboard: Dashboard, eventually: Eventually) -> Dashboard:
    """One computes; one failed, one has done its work, one was stopped."""
    agent = dashboard.agent
    agent.run_cuda("trainer", bytes_=16 * MIB)
    agent.run("broken", "sh", "-c", "exit 3")
    agent.run("done", "true")
    agent.run("stopped", "sleep", "1000")
    for name in ("broken", "done"):
        agent.client.wait(name)
    agent.client.stop("stopped", grace_s=0)
    eventually(lambda: agent.steps("trainer") > 1)
    return dashboard


def names(page: Page) -> list[str | None]:
    return [row.get_attribute("data-name") for row in page.locator(".row-one").all()]


def test_what_failed_is_on_top_in_red_with_the_reason(troubled: Dashboard) -> None:
    page = troubled.open(before=with_models)
    expect(troubled.row(page, "vision").locator(".pill")).to_have_text("failed")
    broken = troubled.row(page, "broken")
    expect(broken.locator(".pill")).to_have_text("failed")
    expect(broken.locator(".state")).to_contain_text("exit status 3")
    expect(troubled.row(page, "vision").locator(".state")).to_contain_text("with status 3: ModuleNotFoundError")
    assert set(names(page)[:2]) == {"vision", "broken"}
    assert {"done", "stopped"}.isdisjoint(names(page)), "what has done its work, or was stopped, is folded away"
    page.get_by_role("button", name="Show 2 ended").click()
    assert names(page)[-2:] == ["done", "stopped"]
    expect(troubled.row(page, "done").locator(".pill")).to_have_text("exited")
    page.mouse.move(0, 0)  # the row under it has another ground
    red = "element => getComputedStyle(element).backgroundColor"
    grounds = {name: troubled.row(page, name).evaluate(red) for name in ("vision", "broken", "done", "trainer")}
    assert grounds["vision"] == grounds["broken"] != grounds["done"] == grounds["trainer"]


def test_what_stands_between_backticks_is_code(troubled: Dashboard) -> None:
    page = troubled.open(before=with_models)
    reason = troubled.row(page, "vision").locator(".state .under")
    expect(reason.locator("code")).to_have_text("kybernate logs vision")
    expect(page.locator("#footer code")).to_have_text("kybernate logs")
    page.get_by_label("More of broken").click()
    expect(page.locator("#details .why code").first).to_contain_text("kybernate logs broken")
    assert "`" not in page.locator("body").inner_text()
    assert "`" not in (reason.get_attribute("title") or "")


@pytest.mark.parametrize("models", [True, False], ids=["with models", "without"])
def test_nothing_sticks_out_at_any_width(troubled: Dashboard, models: bool) -> None:
    page = troubled.open(calm=True, before=with_models if models else None)
    page.get_by_role("button", name="Show 2 ended").click()
    wrong = {}
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        found = [*page.evaluate(STICKS_OUT), *page.evaluate(OVERLAP)]
        if page.evaluate("document.documentElement.scrollWidth") > width:
            found.append("the page is wider than the window")
        if found:
            wrong[width] = found[:3]
    assert wrong == {}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1300, 1920])
def test_all_of_it_can_be_read(troubled: Dashboard, width: int, scheme: str) -> None:
    page = troubled.open(width=width, scheme=scheme, calm=True, before=with_models)
    page.get_by_role("button", name="Show 2 ended").click()
    expect(troubled.row(page, "done")).to_be_visible()
    assert violations(page) == []
