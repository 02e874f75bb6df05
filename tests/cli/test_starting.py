"""When the agent says that it is ready, it is; and it imports nothing from where somebody happens to stand."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import SLOWER, Eventually
from tests.guardian import guarded

from kybernate.cli.simulated import gpu_path
from kybernate.client import Client
from kybernate.cuda import simulated
from kybernate.model import isolation
from kybernate.model.layout import StateDirectory

pytestmark = pytest.mark.timeout(300 * SLOWER)

SCRIPT = str(Path(sys.executable).with_name("kybernate"))
WORKERS = 2


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


class Place:
    """A directory with a kybernate.yaml: one model that nobody asks for, the models' address, the API over TCP."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state = StateDirectory(root / "s")
        self.models, self.api = free_port(), free_port()
        self.settings: dict[str, object] = {
            "agent": {
                "state_dir": str(self.state.root),
                "api": {"listen": f"127.0.0.1:{self.api}"},
                "pool": {"size": "64MiB"},
            },
            "models": {"m": {"command": ["/bin/sleep", "1000"], "port": 1}},
            "activator": {"listen": f"127.0.0.1:{self.models}", "workers": WORKERS, "grace": 1},
        }
        self.write()
        self.client = Client(self.state.socket)
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("KYBERNATE_") and k != "PYTHONPATH"}

    def write(self) -> None:
        (self.root / "kybernate.yaml").write_text(json.dumps(self.settings))

    def up(self, *words: str) -> list[str]:
        return [SCRIPT, "up", "-f", "kybernate.yaml", *words]

    def all_answer(self) -> None:
        """At once, without a second try."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.models}/v1/models", timeout=60) as answer:
            assert [model["id"] for model in json.load(answer)["data"]] == ["m"]
        socket.create_connection(("127.0.0.1", self.api), timeout=60).close()
        node = self.client.node()
        assert node.ready
        assert node.workers_missing == []


@pytest.fixture
def place() -> Iterator[Place]:
    root = Path(tempfile.mkdtemp(prefix="kyb-"))
    with guarded(root):
        made = Place(root)
        try:
            yield made
        finally:
            subprocess.run(
                [SCRIPT, "down", "--stop", "--state-dir", str(made.state.root)],
                capture_output=True,
                timeout=120,
                check=False,
            )
            made.client.close()
            if gpu_path(made.state).exists():
                simulated.remove(gpu_path(made.state))


def test_up_comes_back_when_every_address_answers(place: Place) -> None:
    done = subprocess.run(
        place.up("--detach"),
        cwd=place.root,
        env=place.environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    place.all_answer()
    with_models = [line for line in place.state.log.read_text().splitlines() if "ready on" in line]
    assert len(with_models) == 1
    assert str(place.models) in with_models[0]
    assert str(place.api) in with_models[0]


# -- as a service ----------------------------------------------------------------------------------------------------------


class Manager:
    """The end of systemd's."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address.replace("@", "\0", 1))
        self._socket.settimeout(100 * SLOWER)
        self.heard: list[dict[str, str]] = []

    def wait(self, name: str) -> dict[str, str]:
        """The next message that says it."""
        while True:
            lines = self._socket.recv(65536).decode().splitlines()
            message = dict(line.split("=", 1) for line in lines)
            self.heard.append(message)
            if name in message:
                return message

    def close(self) -> None:
        self._socket.close()


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_a_service_manager_is_told(place: Place, abstract: bool) -> None:
    address = f"@kyb-{os.getpid()}-{place.models}" if abstract else str(place.root / "notify")
    manager = Manager(address)
    with (place.root / "log").open("wb") as log:
        agent = subprocess.Popen(
            place.up(), cwd=place.root, env=place.environment | {"NOTIFY_SOCKET": address}, stdout=log, stderr=log
        )
    try:
        manager.wait("READY")
        place.all_answer()
        statuses = [message["STATUS"] for message in manager.heard if "STATUS" in message]
        assert any("GPU" in line for line in statuses)
        assert statuses[-1].startswith("ready on ")
        for worker in place.client.serving().workers:
            assert b"NOTIFY_SOCKET" not in Path(f"/proc/{worker.pid}/environ").read_bytes()

        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        place.settings["serving"] = {"policy": "fifo"}
        place.write()
        agent.send_signal(signal.SIGHUP)
        assert int(manager.wait("RELOADING")["MONOTONIC_USEC"]) >= before
        manager.wait("READY")
        assert place.client.serving().policy == "fifo"

        place.settings["models"] = "nonsense"
        place.write()
        agent.send_signal(signal.SIGHUP)
        manager.wait("RELOADING")
        manager.wait("READY")
        assert any("not reloaded" in message.get("STATUS", "") for message in manager.heard)
        agent.send_signal(signal.SIGTERM)
        manager.wait("STOPPING")
        assert agent.wait(100) == 0
    finally:
        agent.kill()
        agent.wait()
        manager.close()


def test_the_unit_waits_for_that() -> None:
    unit = (Path(__file__).parents[2] / "deploy/kybernate.service").read_text()
    assert "\nType=notify\n" in unit
    assert "\nTimeoutStartSec=" in unit


# -- whose files are imported ----------------------------------------------------------------------------------------------

LIKE = (
    "yaml",
    "aiohttp",
    "structlog",
    "uvloop",
    "httpx2",
    "pydantic",
    "prometheus_client",
    "obstore",
    "rich",
    "cyclopts",
)


@pytest.mark.parametrize("detach", [True, False], ids=["detached", "foreground"])
def test_no_file_of_the_callers_directory_is_imported(place: Place, eventually: Eventually, detach: bool) -> None:
    """One that is called like a library's module would run as root; these only say that they were run."""
    seen = place.root / "imported"
    for name in (*LIKE, "kybernate"):
        (place.root / f"{name}.py").write_text(f"open({str(seen)!r}, 'a').write(__name__ + chr(10))\n")
    with (place.root / "log").open("wb") as log:
        agent = subprocess.Popen(
            place.up("--simulated=64MiB", *(["--detach"] if detach else [])),
            cwd=place.root,
            env=place.environment,
            stdout=log,
            stderr=log,
        )
    try:
        if detach:
            assert agent.wait(200) == 0, (place.root / "log").read_text()
        else:
            eventually(lambda: "ready on" in (place.root / "log").read_text(), timeout_s=100)
        place.all_answer()
        assert not seen.exists(), seen.read_text()
        workers = place.client.serving().workers
        assert len(workers) == WORKERS
    finally:
        if not detach:
            agent.terminate()
            agent.wait(100)


def test_what_a_search_path_means_is_kept_but_for_where_one_stands(tmp_path: Path) -> None:
    def path(entries: str | None) -> str | None:
        given = {"A": "b"} | ({} if entries is None else {"PYTHONPATH": entries})
        found = isolation.environment(given, directory=tmp_path)
        assert found["A"] == "b"
        return found.get("PYTHONPATH")

    assert path(None) is None
    assert path("") is None
    assert path(":") is None
    assert path(".") is None
    assert path("/opt/lib:") == "/opt/lib"
    assert path(":src:/opt/lib") == f"{tmp_path}/src:/opt/lib"
