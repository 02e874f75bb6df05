"""What the page shows: at every width and theme, live, true, readable for everybody, and harmless whatever it is told."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Callable

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, Route, expect
from tests.conftest import Eventually
from tests.ui.conftest import DESKTOP, PHONE, Dashboard

from kybernate.model.types import MIB

pytestmark = pytest.mark.timeout(300)

HOSTILE = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"

MODES = [(DESKTOP, "light"), (DESKTOP, "dark"), (PHONE, "light"), (PHONE, "dark")]


def violations(page: Page) -> list[str]:
    found = Axe().run(
        page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
    )
    return [
        f"{one['id']}: {one['help']}: {[node['html'][:160] for node in one['nodes']]}"
        for one in found.response["violations"]
    ]


def painted(page: Page) -> int:
    """Pixels of the timeline that have a workload's colour."""
    return int(
        page.evaluate(
            """() => {
              const canvas = document.querySelector("#timeline canvas");
              const probe = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
              const colour = (text) => {
                probe.fillStyle = text;
                probe.fillRect(0, 0, 1, 1);
                return probe.getImageData(0, 0, 1, 1).data.slice(0, 3).join();
              };
              const swatch = document.body.appendChild(document.createElement("i"));
              const wanted = new Set([0, 1, 2, 3, 4, 5, 6, 7].map((i) => {
                swatch.style.color = `var(--c${i})`;
                return colour(getComputedStyle(swatch).color);
              }));
              swatch.remove();
              const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
              let found = 0;
              for (let i = 0; i < data.length; i += 4) if (wanted.has(data.slice(i, i + 3).join())) found += 1;
              return found;
            }"""
        )
    )


@pytest.mark.parametrize(("width", "scheme"), MODES)
def test_everything_is_there_and_fits(dashboard: Dashboard, width: int, scheme: str, eventually: Eventually) -> None:
    agent = dashboard.agent
    agent.run_cuda("trainer", bytes_=40 * MIB)
    agent.run_cuda("chat", bytes_=32 * MIB, seed=2)
    eventually(lambda: agent.steps("trainer") > 1 and agent.steps("chat") > 1)
    agent.client.pause("trainer")
    page = dashboard.open(width=width, scheme=scheme)
    expect(page.locator("#simulated")).to_be_visible()
    expect(dashboard.row(page, "trainer").locator(".pill")).to_have_text("paused")
    expect(dashboard.row(page, "chat").locator(".pill")).to_have_text("running")
    expect(page.locator(".tier.ram .chip")).to_contain_text(["trainer"])
    expect(page.locator(".tier.vram .chip")).to_contain_text(["chat"])
    expect(page.locator("#switches")).to_contain_text("trainer ▼ paused in")
    expect(page.locator("#events")).to_contain_text("paused by order")
    eventually(lambda: painted(page) > 200, what="the timeline is painted")
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing has to be scrolled sideways"
    assert violations(page) == []
    ground = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    light = sum(int(part) for part in re.findall(r"\d+", ground)) > 3 * 128
    assert light == (scheme == "light")


@pytest.mark.parametrize(("width", "scheme"), MODES)
def test_dialogs_and_the_way_in_are_for_everybody_too(
    dashboard: Dashboard, width: int, scheme: str, eventually: Eventually
) -> None:
    agent = dashboard.agent
    agent.run_cuda("shown", bytes_=16 * MIB)
    eventually(lambda: agent.steps("shown") > 1)
    page = dashboard.blank(dashboard.context(width=width, scheme=scheme))
    page.goto(dashboard.url)
    expect(page.locator("#sign-in")).to_be_visible()
    assert violations(page) == []
    page.fill("#token", dashboard.token)
    page.get_by_role("button", name="Open", exact=True).click()
    page.locator("#live[data-state=on]").wait_for()
    page.get_by_role("button", name="Table").click()
    expect(page.locator("#timeline-table")).to_contain_text("shown")
    page.get_by_label("More of shown").click()
    dialog = page.locator("#details")
    expect(dialog).to_contain_text("gives its VRAM back")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert violations(page) == []
    dialog.get_by_role("button", name="Pause to NVMe").click()
    expect(page.locator("#confirm")).to_be_visible()
    assert violations(page) == []
    page.get_by_role("button", name="Leave it").click()


def test_it_is_live(dashboard: Dashboard, eventually: Eventually) -> None:
    page = dashboard.open()
    expect(page.locator("#workloads")).to_contain_text("No workload yet")
    dashboard.agent.run_cuda("newcomer", bytes_=16 * MIB)
    row = dashboard.row(page, "newcomer")
    expect(row.locator(".pill")).to_have_text("running")
    expect(row).to_contain_text("16 MiB")
    dashboard.agent.client.pause("newcomer")
    expect(row.locator(".pill")).to_have_text("paused")
    expect(page.locator(".tier.ram")).to_contain_text("newcomer")
    dashboard.agent.client.stop("newcomer", remove=True)
    expect(row).to_have_count(0)
    page.get_by_role("button", name="Table").click()
    expect(page.locator("#timeline-table")).to_contain_text("newcomer")


def test_what_has_ended_is_folded_away(dashboard: Dashboard) -> None:
    agent = dashboard.agent
    for name in ("first", "second"):
        agent.run(name, "true")
        agent.client.wait(name)
    page = dashboard.open()
    fold = page.get_by_role("button", name="Show 2 ended")
    expect(fold).to_be_visible()
    expect(page.locator(".row-one")).to_have_count(0)
    fold.focus()
    page.keyboard.press("Enter")
    expect(dashboard.row(page, "first").locator(".pill")).to_have_text("exited")
    expect(dashboard.row(page, "second")).to_be_visible()
    page.get_by_role("button", name="Hide 2 ended").click()
    expect(page.locator(".row-one")).to_have_count(0)


def test_it_comes_back_when_the_agent_does(dashboard: Dashboard, eventually: Eventually) -> None:
    agent = dashboard.agent
    agent.run_cuda("survivor", bytes_=16 * MIB)
    eventually(lambda: agent.steps("survivor") > 1)
    page = dashboard.open()
    expect(dashboard.row(page, "survivor")).to_be_visible()
    dashboard.expected += ["Failed to load resource", "net::ERR"]
    agent.kill()
    expect(page.locator("#live")).to_have_text("not connected")
    expect(page.locator("#trouble")).to_contain_text("What is shown is from before")
    expect(dashboard.row(page, "survivor")).to_be_visible()
    agent.start()
    expect(page.locator("#live")).to_have_text("live")
    expect(page.locator("#trouble")).to_be_hidden()
    expect(dashboard.row(page, "survivor").locator(".pill")).to_have_text("running")


def test_the_theme_is_the_systems_until_somebody_chooses(dashboard: Dashboard) -> None:
    page = dashboard.open(scheme="dark")
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    dark = page.evaluate(ground)
    button = page.locator("#theme")
    expect(button).to_have_accessible_name("Theme: as the system")
    button.click()
    expect(button).to_have_accessible_name("Theme: light")
    assert page.evaluate(ground) != dark
    page.reload()
    page.locator("#live[data-state=on]").wait_for()
    expect(button).to_have_accessible_name("Theme: light")
    button.click()
    assert page.evaluate(ground) == dark
    button.click()
    expect(button).to_have_accessible_name("Theme: as the system")


def test_little_motion_for_those_who_want_little(dashboard: Dashboard, eventually: Eventually) -> None:
    dashboard.agent.run_cuda("mover", bytes_=16 * MIB)
    for calm in (True, False):
        page = dashboard.open(calm=calm)
        segment = page.locator(".tier.vram .segment").first
        segment.wait_for(state="attached")
        moves = segment.evaluate("(one) => parseFloat(getComputedStyle(one).transitionDuration) > 0")
        assert moves is not calm


# -- the token ----------------------------------------------------------------------------------------------------------


def test_the_token_leaves_the_address_and_stays_in_the_tab(dashboard: Dashboard) -> None:
    context = dashboard.context()
    page = dashboard.blank(context)
    page.goto(f"{dashboard.url}#token={dashboard.token}")
    page.locator("#live[data-state=on]").wait_for()
    assert page.url == dashboard.url
    assert page.evaluate("Object.values(sessionStorage)") == [dashboard.token]
    assert page.evaluate("Object.values(localStorage)") == []
    assert context.cookies() == []
    page.reload()
    page.locator("#live[data-state=on]").wait_for()
    other = dashboard.blank(context)
    other.goto(dashboard.url)
    expect(other.locator("#sign-in")).to_be_visible()


def test_without_a_token_nothing_is_shown_or_asked(dashboard: Dashboard) -> None:
    page = dashboard.blank()
    page.goto(dashboard.url)
    expect(page.locator("#sign-in")).to_be_visible()
    expect(page.locator("#board")).to_be_hidden()
    assert not [url for url in dashboard.requests if "/v1/" in url]


@pytest.mark.parametrize("wrong", ["wrong", "ünï cödé", "a b", "\u2028"])
def test_a_wrong_token_is_said_to_be_wrong(dashboard: Dashboard, wrong: str) -> None:
    dashboard.expected.append("401")
    page = dashboard.blank()
    page.goto(dashboard.url)
    page.fill("#token", wrong)
    page.keyboard.press("Enter")
    expect(page.locator("#token-problem")).to_have_text("That token is not the agent's.")
    expect(page.locator("#board")).to_be_hidden()
    assert page.evaluate("sessionStorage.length") == 0
    page.fill("#token", dashboard.token)
    page.keyboard.press("Enter")
    page.locator("#live[data-state=on]").wait_for()


def test_a_token_that_holds_no_more_shuts_the_page(dashboard: Dashboard) -> None:
    dashboard.expected.append("401")
    page = dashboard.open()
    file = dashboard.agent.state.token
    before = file.read_text()
    try:
        file.write_text("a-new-token-of-some-length\n")
        expect(page.locator("#sign-in")).to_be_visible()
        expect(page.locator("#board")).to_be_hidden()
    finally:
        file.write_text(before)


# -- hostile words ------------------------------------------------------------------------------------------------------


def test_what_a_command_line_says_is_text(dashboard: Dashboard, eventually: Eventually) -> None:
    dashboard.agent.run("hostile", "sh", "-c", f"sleep 60; : {shlex.quote(HOSTILE)}")
    page = dashboard.open()
    expect(dashboard.row(page, "hostile")).to_contain_text("onerror=")
    page.get_by_label("More of hostile").click()
    expect(page.locator("#details .facts")).to_contain_text("onerror=")
    assert page.locator("main img, #details img, main script").count() == 0
    assert page.title() == "Kybernate"


def serving(name: str) -> dict[str, object]:
    usage = {"resident_s": 10, "busy_s": 5, "byte_s": 1}
    served = {
        "name": name,
        "kind": "model",
        "klass": HOSTILE,
        "priority": 3,
        "state": HOSTILE,
        "phase": "resident",
        "tier": "vram",
        "open": True,
        "waiting": 7,
        "oldest_wait_s": 1.5,
        "in_flight": 2,
        "bytes": 1 << 30,
        "cost": {"leave_s": 0.8, "come_s": 1.25, "come_staged_s": 1.0},
        "reason": HOSTILE,
        "usage": usage,
    }
    return {
        "time": time.time(),
        "listen": HOSTILE,
        "policy": HOSTILE,
        "served": [served],
        "classes": [{"klass": HOSTILE, "usage": usage, "share": 0.25}],
        "workers": [],
        "staging": {"budget_bytes": 1, "used_bytes": 0, "hits": 1, "misses": 0},
        "notes": [HOSTILE],
    }


def test_whatever_an_agent_says_is_text(dashboard: Dashboard) -> None:
    """An agent checks names; the page doesn't rely on it."""

    def lie(page: Page) -> None:
        def changed(change: Callable[[dict[str, object]], object]) -> Callable[[Route], None]:
            return lambda route: route.fulfill(json=change(route.fetch().json()))

        def events(answer: dict[str, object]) -> object:
            event = {"id": 1, "time": time.time(), "workload": HOSTILE, "kind": HOSTILE, "text": HOSTILE, "data": {}}
            return {"events": [event]}

        def history(answer: dict[str, object]) -> object:
            interval = {
                "id": 1,
                "workload": HOSTILE,
                "place": HOSTILE,
                "began": time.time() - 60,
                "ended": None,
                "bytes": 1 << 20,
            }
            switch = {"time": time.time(), "workload": HOSTILE, "operation": HOSTILE, "depth": "zero", "seconds": 1.0}
            sizes = {
                "bytes_total": 1,
                "bytes_copied": 1,
                "bytes_clean": 1,
                "bytes_zero": 1,
                "bytes_per_s": 1.0,
                "steps": [],
            }
            return {**answer, "intervals": [interval], "switches": [{**switch, **sizes}]}

        page.route("**/openapi.json", changed(lambda answer: {"paths": {"/v1/serving": {}}}))
        page.route("**/v1/serving", lambda route: route.fulfill(json=serving(HOSTILE)))
        page.route("**/v1/events?*", changed(events))
        page.route("**/v1/history?*", changed(history))

    page = dashboard.open(before=lie)
    expect(page.locator(".row-one")).to_contain_text("onerror=")
    expect(page.locator("#events")).to_contain_text("onerror=")
    expect(page.locator("#switches")).to_contain_text("onerror=")
    expect(page.locator("#classes")).to_contain_text("onerror=")
    expect(page.locator("#footer")).to_contain_text("onerror=")
    page.get_by_role("button", name="Table").click()
    expect(page.locator("#timeline-table")).to_contain_text("onerror=")
    page.hover("#timeline canvas", position={"x": 1000, "y": 60})
    assert page.locator("main img, main script, footer img").count() == 0
    assert page.title() == "Kybernate"
    dashboard.problems[:] = [one for one in dashboard.problems if "Content Security Policy" in one]


def test_models_show_their_queues_costs_and_shares(dashboard: Dashboard) -> None:
    def tell(page: Page) -> None:
        told = json.loads(json.dumps(serving("chat")).replace(json.dumps(HOSTILE)[1:-1], "interactive"))
        page.route("**/openapi.json", lambda route: route.fulfill(json={"paths": {"/v1/serving": {}}}))
        page.route("**/v1/serving", lambda route: route.fulfill(json=told))

    page = dashboard.open(before=tell)
    row = dashboard.row(page, "chat")
    for text in (
        "interactive model, priority 3",
        "7 waiting",
        "2 in flight",
        "oldest 1.50 s",
        "out 0.80 s",
        "in 1.25 s",
    ):
        expect(row).to_contain_text(text)
    expect(page.locator("#classes")).to_contain_text("interactive25 %")
