"""The buttons and the keys do what they say, through a real agent; without a mouse, too."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect
from tests.conftest import Eventually
from tests.ui.conftest import DESKTOP, PHONE, Dashboard

from kybernate.model.types import MIB, TierName, WorkloadState

pytestmark = pytest.mark.timeout(300)


def started(dashboard: Dashboard, eventually: Eventually, name: str, *, bytes_: int = 16 * MIB) -> None:
    dashboard.agent.run_cuda(name, bytes_=bytes_)
    eventually(lambda: dashboard.agent.steps(name) > 1)


def state_of(dashboard: Dashboard, name: str) -> WorkloadState:
    return dashboard.agent.client.workload(name).state


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_pause_and_resume(dashboard: Dashboard, eventually: Eventually, width: int) -> None:
    started(dashboard, eventually, "job")
    page = dashboard.open(width=width)
    page.get_by_role("button", name="Pause job").click()
    expect(page.locator("#toasts")).to_contain_text("job: paused to RAM in")
    assert state_of(dashboard, "job") is WorkloadState.PAUSED
    page.get_by_role("button", name="Resume job").click()
    expect(page.locator("#toasts")).to_contain_text("job: resumed in")
    assert state_of(dashboard, "job") is WorkloadState.RUNNING
    dashboard.agent.steps("job")


@pytest.mark.root
def test_to_the_disk_and_back_is_asked_for_again(dashboard: Dashboard, eventually: Eventually) -> None:
    started(dashboard, eventually, "deep")
    page = dashboard.open()
    page.get_by_label("More of deep").click()
    page.get_by_role("button", name="Pause to NVMe").click()
    confirm = page.locator("#confirm")
    expect(confirm).to_contain_text("its processes end")
    expect(confirm.get_by_role("button", name="Leave it")).to_be_focused()
    page.keyboard.press("Escape")
    expect(confirm).to_be_hidden()
    assert state_of(dashboard, "deep") is WorkloadState.RUNNING
    page.get_by_label("More of deep").click()
    page.get_by_role("button", name="Pause to NVMe").click()
    confirm.get_by_role("button", name="Pause to NVMe").click()
    expect(page.locator("#toasts")).to_contain_text("deep: paused to NVMe")
    expect(page.locator(".tier.nvme")).to_contain_text("deep")
    assert dashboard.agent.client.workload("deep").tier == TierName.NVME
    page.get_by_role("button", name="Prefetch to RAM deep").click()
    expect(dashboard.row(page, "deep")).to_contain_text("staged in RAM")
    assert dashboard.agent.client.workload("deep").staged
    page.get_by_role("button", name="Resume deep").click()
    eventually(lambda: state_of(dashboard, "deep") is WorkloadState.RUNNING, timeout_s=30)
    dashboard.agent.steps("deep")


def test_a_refusal_says_what_to_do(dashboard: Dashboard, eventually: Eventually) -> None:
    """The pool has 96 MiB; two of 60 don't fit in it together."""
    started(dashboard, eventually, "first", bytes_=60 * MIB)
    dashboard.agent.client.pause("first")
    started(dashboard, eventually, "second", bytes_=60 * MIB)
    dashboard.expected.append("507")
    page = dashboard.open()
    page.get_by_role("button", name="Pause second").click()
    toast = page.locator(".toast.bad")
    expect(toast).to_contain_text("host pool")
    assert toast.locator("p").inner_text() != ""
    assert state_of(dashboard, "second") is WorkloadState.RUNNING
    toast.get_by_role("button", name="Dismiss").click()
    expect(toast).to_have_count(0)


def test_an_order_under_way_cannot_be_given_twice(dashboard: Dashboard, eventually: Eventually) -> None:
    started(dashboard, eventually, "once")
    page = dashboard.open()
    held: list[str] = []
    page.route("**/pause", lambda route: held.append(route.request.url))
    page.get_by_role("button", name="Pause once").dblclick()
    busy = dashboard.row(page, "once").get_by_role("button", name="Pausing…")
    expect(busy).to_have_attribute("aria-disabled", "true")
    busy.click(force=True)
    dashboard.row(page, "once").focus()
    page.keyboard.press("p")
    expect(busy).to_be_visible()
    assert len(held) == 1


# -- the keyboard alone -------------------------------------------------------------------------------------------------


def focus(page: Page) -> str:
    return str(
        page.evaluate(
            "document.activeElement.id || document.activeElement.dataset.name || document.activeElement.textContent.trim()"
        )
    )


def tab_to(page: Page, wanted: str, *, most: int = 60) -> None:
    for _ in range(most):
        if focus(page) == wanted:
            return
        page.keyboard.press("Tab")
    pytest.fail(f"Tab never comes to {wanted!r}")


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_every_stop_of_the_tab_key_is_seen(dashboard: Dashboard, eventually: Eventually, width: int) -> None:
    started(dashboard, eventually, "a")
    started(dashboard, eventually, "b")
    page = dashboard.open(width=width)
    expect(dashboard.row(page, "b")).to_be_visible()
    stops = []
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement === document.body"):
            break
        seen = page.evaluate(
            """() => {
              const one = document.activeElement;
              const box = one.getBoundingClientRect();
              const style = getComputedStyle(one);
              return box.width > 0 && box.height > 0 && box.top < innerHeight && box.bottom > 0
                && style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
            }"""
        )
        stops.append(focus(page))
        assert seen or stops[-1].startswith("Skip"), f"the focus on {stops[-1]!r} can't be seen"
    assert stops[0].startswith("Skip")
    for wanted in ("theme", "timeline", "a", "Pause", "More", "events-filter", "events"):
        assert wanted in stops, stops
    assert stops.index("timeline") < stops.index("a") < stops.index("events")


def test_a_whole_visit_without_a_mouse(dashboard: Dashboard, eventually: Eventually) -> None:
    started(dashboard, eventually, "alpha")
    started(dashboard, eventually, "beta")
    page = dashboard.blank()
    page.goto(dashboard.url)
    expect(page.locator("#token")).to_be_focused()
    page.keyboard.type(dashboard.token)
    page.keyboard.press("Enter")
    page.locator("#live[data-state=on]").wait_for()
    tab_to(page, "timeline")
    page.keyboard.press("+")
    expect(page.locator("#timeline-range")).to_contain_text("2 min 30 s")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#timeline-live")).to_have_attribute("aria-pressed", "false")
    page.keyboard.press("End")
    expect(page.locator("#timeline-live")).to_have_attribute("aria-pressed", "true")
    tab_to(page, "alpha")
    page.keyboard.press("ArrowDown")
    assert focus(page) == "beta"
    page.keyboard.press("p")
    expect(dashboard.row(page, "beta").locator(".pill")).to_have_text("paused")
    expect(page.locator("#toasts")).to_contain_text("beta: paused")
    assert focus(page) == "beta"
    page.keyboard.press("r")
    expect(dashboard.row(page, "beta").locator(".pill")).to_have_text("running")
    page.keyboard.press("Enter")
    expect(page.locator("#details")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#details")).to_be_hidden()
    assert focus(page) == "beta"
    page.keyboard.press("?")
    expect(page.locator("#keys")).to_be_visible()
    page.keyboard.press("Escape")
    assert state_of(dashboard, "alpha") is WorkloadState.RUNNING


def test_focus_stays_when_a_button_becomes_another(dashboard: Dashboard, eventually: Eventually) -> None:
    started(dashboard, eventually, "kept")
    page = dashboard.open()
    page.get_by_role("button", name="Pause kept").focus()
    page.keyboard.press("Enter")
    resume = page.get_by_role("button", name="Resume kept")
    expect(resume).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Pause kept")).to_be_focused()


def test_focus_stays_when_the_row_above_goes(dashboard: Dashboard, eventually: Eventually) -> None:
    started(dashboard, eventually, "above")
    started(dashboard, eventually, "below")
    page = dashboard.open()
    pause = page.get_by_role("button", name="Pause below")
    pause.focus()
    dashboard.agent.client.stop("above", grace_s=0, remove=True)
    expect(dashboard.row(page, "above")).to_have_count(0)
    expect(pause).to_be_focused()


def test_letters_do_nothing_where_one_types_or_has_turned_them_off(
    dashboard: Dashboard, eventually: Eventually
) -> None:
    started(dashboard, eventually, "typed")
    page = dashboard.open()
    page.locator("#events-filter").focus()
    page.keyboard.type("p?r")
    expect(page.locator("#keys")).to_be_hidden()
    page.get_by_role("button", name="Keys").click()
    page.get_by_label("Keys of a single letter").uncheck()
    page.keyboard.press("Escape")
    dashboard.row(page, "typed").focus()
    page.keyboard.press("p")
    page.keyboard.press("?")
    expect(page.locator("#keys")).to_be_hidden()
    expect(dashboard.row(page, "typed").get_by_role("button", name="Pause typed")).to_be_visible()
    assert state_of(dashboard, "typed") is WorkloadState.RUNNING


def test_the_filter_of_events(dashboard: Dashboard, eventually: Eventually) -> None:
    started(dashboard, eventually, "seen")
    dashboard.agent.client.pause("seen")
    page = dashboard.open()
    expect(page.locator("#events")).to_contain_text("started")
    page.locator("#events-filter").fill("paused by order")
    expect(page.locator("#events li").first).to_contain_text("paused by order")
    expect(page.locator("#events")).not_to_contain_text("started")
