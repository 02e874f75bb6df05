"""A real Chromium before a real agent on the simulated GPU."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Playwright, expect, sync_playwright
from tests.agent.conftest import AgentProcess, agent_process
from tests.leftovers import Leftovers

from kybernate.model.types import MIB

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome-stable") if (path := shutil.which(name))), None
)
FLAGS = [
    "--no-sandbox",  # as root there is none; the page is our own
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
]
PATIENCE_MS = 60_000
DESKTOP, PHONE = 1440, 390

expect.set_options(timeout=PATIENCE_MS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if CHROMIUM is None:
        for item in items:
            if Path(__file__).parent in item.path.parents and "browser" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.skip(reason="left out: needs chromium (scripts/chromium.sh)"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Dashboard:
    """An agent, and pages of it. What a page must never do is noted, and is an error at the end."""

    def __init__(self, agent: AgentProcess, browser: Browser, contexts: ExitStack) -> None:
        self.agent = agent
        self._browser = browser
        self._contexts = contexts
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.expected: list[str] = []
        """Parts of messages in the browser's log that a test brings about on purpose."""

    @property
    def url(self) -> str:
        url = self.agent.client.node().url
        assert url is not None
        return url

    @property
    def token(self) -> str:
        return self.agent.state.token.read_text().strip()

    def context(self, *, width: int = DESKTOP, scheme: str = "light", calm: bool = False) -> BrowserContext:
        context = self._browser.new_context(
            viewport={"width": width, "height": 900 if width > 500 else 844},
            color_scheme="dark" if scheme == "dark" else "light",
            reduced_motion="reduce" if calm else "no-preference",
        )
        context.set_default_timeout(PATIENCE_MS)
        self._contexts.callback(context.close)
        return context

    def blank(self, context: BrowserContext | None = None) -> Page:
        """A page that is nowhere yet."""
        page = (context or self.context()).new_page()
        page.on("console", lambda message: self._noted(message.type, message.text))
        page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        page.on("request", lambda request: self.requests.append(request.url))
        return page

    def open(
        self,
        *,
        width: int = DESKTOP,
        scheme: str = "light",
        calm: bool = False,
        before: Callable[[Page], None] | None = None,
    ) -> Page:
        """A page that shows the node, live."""
        page = self.blank(self.context(width=width, scheme=scheme, calm=calm))
        if before is not None:
            before(page)
        page.goto(f"{self.url}#token={self.token}")
        page.locator("#live[data-state=on]").wait_for()
        return page

    @staticmethod
    def row(page: Page, name: str) -> Locator:
        return page.locator(f'.row-one[data-name="{name}"]')

    def _noted(self, kind: str, text: str) -> None:
        if "willReadFrequently" in text:
            return  # Chromium's advice to a test that looks at the canvas' pixels
        if kind in ("error", "warning") and not any(part in text for part in self.expected):
            self.problems.append(f"{kind}: {text}")


@pytest.fixture(scope="module")
def browser(leftovers_check: Leftovers) -> Iterator[Browser]:
    # A module's, not the session's: while it is there, an event loop runs in this thread, and asynchronous tests could not.
    playwright: Playwright
    # It starts and ends processes as it likes.
    with leftovers_check.allowing("/chromium"), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def agent() -> Iterator[AgentProcess]:
    """With room for two of the workloads in VRAM, for one and a half in the pool, and with a disk tier."""
    port = free_port()
    settings = (
        f"agent:\n  pool: {{size: {96 * MIB}}}\n  arbiter: {{min_run: 0.2, settle: 0.2, wait_limit: 20}}\n"
        f"  api: {{listen: '127.0.0.1:{port}'}}\n  store: {{demote: {{pressure: false}}}}\n"
    )
    yield from agent_process(settings=settings, simulated_gpu=True)


@pytest.fixture
def dashboard(agent: AgentProcess, browser: Browser) -> Iterator[Dashboard]:
    """At its end all workloads go, and whatever the pages did wrong fails the test."""
    with ExitStack() as contexts:
        dashboard = Dashboard(agent, browser, contexts)
        yield dashboard
        own = urlsplit(dashboard.url).netloc
    agent.stop_all()
    assert dashboard.problems == []
    assert {urlsplit(url).netloc for url in dashboard.requests} <= {own}, "nothing comes from outside"
    token = dashboard.token
    assert [url for url in dashboard.requests if token in url] == [], "the token is in no address that is asked for"
