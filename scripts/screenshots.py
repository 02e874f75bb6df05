"""Makes docs/dashboard-*.webp: the dashboard of a node with a simulated GPU, in both themes and on a phone.

    .venv/bin/python scripts/screenshots.py

It takes six minutes, root and a Chromium (scripts/chromium.sh). The scene: four models behind one address, a training
job in their gaps, a notebook on the disk, an experiment in the bucket, and requests that come and go. Agent, GPU and
state lie in a temporary directory.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

DOCS = Path(__file__).resolve().parents[1] / "docs"
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome-stable") if (path := shutil.which(name))), None
)
SCENE_S = 290.0
"""The page shows five minutes."""
QUALITY = 82
MODELS = {  # bytes, and seconds between two bursts of requests, on average
    "chat-8b": (260_000_000, 12.0),
    "code-14b": (330_000_000, 15.0),
    "embedder": (50_000_000, 9.0),
    "vision-7b": (160_000_000, 60.0),
}
PROGRAM = f"{sys.executable} -m kybernate.benchmarks.workload --bytes 60000000 --loop 0.05 --pace 0.2".split()
PICTURES = (  # name, width, height, theme, device pixels for each of the page's
    ("wide", 1280, 900, "light", 1.25),
    ("dark", 1280, 900, "dark", 1.25),
    ("phone", 390, 844, "dark", 2.0),
)


def configuration(*, home: Path, api: int, address: int) -> str:
    """The node's kybernate.yaml, with these ports."""
    server = f"{sys.executable} -m kybernate.demo.server --port 8000 --seconds-per-token 0.02"
    models = "".join(
        f"""
  {name}:
    command: {server} --name {name} --bytes {size} --seed {seed}
    port: 8000
    ready: /health
    vram: {size}
    limits: {{concurrency: 4}}"""
        for seed, (name, (size, _)) in enumerate(MODELS.items())
    )
    return f"""
agent:
  api: {{listen: "127.0.0.1:{api}"}}
  pool: {{size: 1280MiB}}
  store: {{directory: {home}/store, object: {{url: "file://{home}/bucket"}}}}
models:{models}
jobs:
  trainer:
    command: {sys.executable} -m kybernate.demo.training --bytes 220000000 --steps 1000000 --pace 0.05
    vram: 220MB
activator:
  listen: 127.0.0.1:{address}
serving: {{min_run: 1s}}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Node:
    """An agent with its activator, in a directory of their own."""

    def __init__(self, home: Path) -> None:
        self.state = home / "state"
        self.api, self.address = free_port(), free_port()
        (home / "bucket").mkdir()
        self._file = home / "kybernate.yaml"
        self._file.write_text(configuration(home=home, api=self.api, address=self.address))
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []

    def kybernate(self, *words: str) -> str:
        """Run a command to its end; its output.

        Raises:
            subprocess.CalledProcessError: it failed; what it says is on the terminal.
        """
        command = [sys.executable, "-m", "kybernate.cli", *words]
        environment = {**os.environ, "KYBERNATE_STATE_DIR": str(self.state)}
        return subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout

    def start(self) -> None:
        self.kybernate("up", "--file", str(self._file), "--simulated", "512MiB", "--detach")

    def act(self) -> None:
        """Requests for all models until the end, and what a person would do beside them."""
        for seed, (name, (_, pause_s)) in enumerate(MODELS.items()):
            thread = threading.Thread(target=self._ask, args=(name, pause_s, random.Random(seed)))
            thread.start()
            self._threads.append(thread)
        began = time.monotonic()
        for name, tier in (("notebook", "nvme"), ("experiment", "object")):
            self.kybernate("run", name, "--", *PROGRAM)
            time.sleep(6)
            self.kybernate("pause", name, "--tier", tier)
        time.sleep(max(0.0, began + SCENE_S - time.monotonic()))

    def _ask(self, model: str, pause_s: float, chance: random.Random) -> None:
        while not self._ended.is_set():
            for _ in range(chance.randint(1, 5)):
                body = {"model": model, "prompt": f"{chance.random()}", "max_tokens": chance.randint(10, 60)}
                request = urllib.request.Request(
                    f"http://127.0.0.1:{self.address}/v1/completions",
                    data=json.dumps(body).encode(),
                    headers={"content-type": "application/json"},
                )
                with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=60) as answer:
                    answer.read()
            self._ended.wait(chance.expovariate(1 / pause_s))

    def end(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self.kybernate("down", "--stop")

    @property
    def url(self) -> str:
        return self.kybernate("dashboard").strip().splitlines()[-1]


@contextlib.contextmanager
def node() -> Iterator[Node]:
    home = Path(tempfile.mkdtemp(prefix="kybernate-"))
    made = Node(home)
    try:
        made.start()
        try:
            yield made
        finally:
            made.end()
    finally:
        # An agent's memory outlives it, for the next one.
        for line in Path("/proc/mounts").read_text().splitlines():
            if (point := line.split()[1]).startswith(str(home)):
                subprocess.run(["umount", point], check=True)
        shutil.rmtree(home)


def save(page: Page, path: Path, *, whole: bool) -> None:
    """By Chromium's own protocol: Playwright writes only PNG and JPEG."""
    session = page.context.new_cdp_session(page)
    size = session.send("Page.getLayoutMetrics")["cssContentSize" if whole else "cssVisualViewport"]
    width, height = (size["width"], size["height"]) if whole else (size["clientWidth"], size["clientHeight"])
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    answer = session.send(
        "Page.captureScreenshot", {"format": "webp", "quality": QUALITY, "captureBeyondViewport": whole, "clip": clip}
    )
    path.write_bytes(base64.b64decode(answer["data"]))


def photograph(browser: Browser, url: str) -> None:
    for name, width, height, theme, scale in PICTURES:
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if theme == "dark" else "light",
            device_scale_factor=scale,
        )
        page = context.new_page()
        page.goto(url)
        page.locator("#live[data-state=on]").wait_for()
        page.wait_for_timeout(2000)
        save(page, DOCS / f"dashboard-{name}.webp", whole=name != "phone")
        print(f"docs/dashboard-{name}.webp")
        context.close()


def main() -> None:
    if CHROMIUM is None:
        sys.exit("no Chromium here: scripts/chromium.sh gets one")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with node() as made, sync_playwright() as playwright:
        made.act()
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        photograph(browser, made.url)
        browser.close()


if __name__ == "__main__":
    main()
