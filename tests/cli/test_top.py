"""`top` leaves out columns where the terminal is narrow, fits its height, and obeys keys, in a real terminal and agent."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from tests.agent.conftest import AgentProcess, agent_process
from tests.conftest import Eventually

from kybernate.cli.commands.looking import COLUMNS
from kybernate.cli.commands.top import with_message
from kybernate.cli.fitting import columns_for, plain
from kybernate.cli.keyboard import names
from kybernate.cli.watching import Seen, picture
from kybernate.model.api import GoneView, GpuView, NodeView, OperationView, PoolView, TierView, WorkloadView
from kybernate.model.api_serving import CostView, ServedView, ServingView, StagingView
from kybernate.model.types import GIB, MIB, Backend, Class, Phase, ServedKind, TierName, WorkloadState

ROW = (
    "trainer",
    "resuming (1.0 s)",
    "nvme",
    "zero",
    "broker",
    "256.0 MiB",
    "256.0 MiB",
    "12 min 5 s",
    "1.20 s",
    "1.07 s",
    "-",
    "python train.py",
)


@pytest.mark.parametrize(
    ("width", "left_out"),
    [
        (140, set()),
        (100, {"COMMAND"}),
        (80, {"COMMAND", "BACKEND", "DEPTH"}),
        (60, {"COMMAND", "BACKEND", "DEPTH", "HOST COPY", "RESUME", "PAUSE"}),
        (40, set(COLUMNS) - {"NAME", "STATE", "TIER", "VRAM"}),
        (30, set(COLUMNS) - {"NAME", "STATE", "TIER"}),
        (25, set(COLUMNS) - {"NAME", "STATE"}),
        (10, set(COLUMNS) - {"NAME"}),
    ],
)
def test_columns(width: int, left_out: set[str]) -> None:
    """The command goes first, the name never."""
    assert set(COLUMNS) - {COLUMNS[i] for i in columns_for([ROW], width=width, columns=COLUMNS)} == left_out


def workload(name: str, tier: str = "vram") -> WorkloadView:
    state = WorkloadState.RUNNING if tier == "vram" else WorkloadState.PAUSED
    return WorkloadView(
        name=name,
        state=state,
        reason="",
        since=time.time(),
        backend=Backend.BROKER,
        last_use=0.0,
        tier=tier,
        argv=["x"],
    )


def served(name: str) -> ServedView:
    cost = CostView(leave_s=0.5, come_s=1.0, come_staged_s=0.9)
    return ServedView(
        name=name,
        kind=ServedKind.MODEL,
        klass=Class.INTERACTIVE,
        priority=0,
        state=WorkloadState.RUNNING,
        phase=Phase.RESIDENT,
        waiting=12,
        in_flight=3,
        oldest_wait_s=2.0,
        cost=cost,
    )


NODE = NodeView(
    version="1",
    pid=1,
    started=0.0,
    state_directory="/s",
    simulated=True,
    driver_version=None,
    gpus=[
        GpuView(
            index=0,
            uuid="u",
            name="GPU",
            total_bytes=GIB,
            free_bytes=GIB // 4,
            limit_bytes=GIB,
            resident_bytes=GIB // 2,
            simulated=True,
        )
    ],
    pool=PoolView(size_bytes=GIB, ready_bytes=GIB, free_bytes=GIB // 2),
    notes=[],
    workloads={},
    tiers=[TierView(tier=TierName.OBJECT, where="s3://b", state="away", problem="doesn't answer")],
)


SERVING = ServingView(
    time=0.0,
    listen="127.0.0.1:8080",
    policy="balanced",
    served=[served("chat")],
    classes=[],
    workers=[],
    staging=StagingView(budget_bytes=0, used_bytes=0, hits=0, misses=0),
)


def shown(seen: Seen, *, width: int, height: int) -> list[str]:
    console = Console(width=width, height=height, color_system=None, force_terminal=True, legacy_windows=False)
    with console.capture() as capture:
        console.print(picture(seen, width=width, height=height))
    return re.sub(r"\x1b\[[0-9;]*m", "", capture.get()).splitlines()


@pytest.mark.parametrize(("width", "height"), [(160, 40), (80, 24), (60, 16), (40, 12)])
@pytest.mark.parametrize("count", [0, 1, 7, 60])
def test_it_fits(width: int, height: int, count: int) -> None:
    seen = Seen(node=NODE, workloads={f"w{i:02}": workload(f"w{i:02}") for i in range(count)}).choose(count // 2 + 1)
    lines = shown(seen, width=width, height=height)
    assert len(lines) <= height
    assert max(len(line) for line in lines) <= width
    if count:
        assert any("›" in line and str(seen.chosen) in line for line in lines), "the chosen one is among those shown"


@pytest.mark.parametrize("width", [24, 40, 60, 80, 100, 140, 200])
@pytest.mark.parametrize("height", [8, 12, 24])
def test_what_a_key_means_can_be_read(width: int, height: int) -> None:
    """Each name is there in full, whatever else has no room; the chosen one above all."""
    busy = OperationView(kind="pause", seconds=12.5, bytes_total=GIB, bytes_done=GIB // 2)
    views = {}
    for name in ("chat-large", "chat-small", "trainer-nightly"):
        argv = ["/opt/models/bin/serve", "--model", "/srv/models/chat", "--port", "8000"]
        views[name] = workload(name).model_copy(update={"operation": busy, "argv": argv, "resident_bytes": GIB})
    seen = Seen(node=NODE, workloads=views, serving=SERVING, chosen="trainer-nightly")
    lines = shown(seen, width=width, height=height)
    assert any(line.startswith("› trainer-nightly") for line in lines), lines
    assert max(len(line) for line in lines) <= width
    assert len(lines) <= height
    if height >= 12:
        assert all(any(line.startswith(f"  {name}") for line in lines) for name in ("chat-large", "chat-small"))


def test_a_long_name_leaves_room_for_what_there_is_to_know() -> None:
    name = "a-model-with-a-name-that-says-everything-about-it-and-more"
    lines = shown(Seen(node=NODE, workloads={name: workload(name)}), width=100, height=24)
    header = next(line for line in lines if "NAME" in line)
    assert all(column in header for column in ("STATE", "TIER", "VRAM", "FOR"))
    assert any("a-model-with-a-name-that…" in line for line in lines)


def test_tiers_queues_and_what_is_wrong() -> None:
    both = {"chat": workload("chat"), "deep": workload("deep", "ram")}
    text = "\n".join(shown(Seen(node=NODE, workloads=both, serving=SERVING), width=150, height=40))
    assert re.search(r"VRAM +█+░+ 768.0 MiB of 1.0 GiB +chat", text)
    assert re.search(r"RAM +█+░+ 512.0 MiB of 1.0 GiB +deep", text)
    assert "object can't be used: doesn't answer" in text
    assert "3+12 (2.00 s)" in text
    assert "models on 127.0.0.1:8080" in text


def test_one_in_back_off_says_when_it_starts_again() -> None:
    ended = workload("job").model_copy(update={"state": WorkloadState.EXITED, "tier": None, "exit_status": 1})
    again = served("job").model_copy(update={"kind": "job", "again_at": time.time() + 3600})
    serving = SERVING.model_copy(update={"served": [again]})
    for width in (160, 60, 40):
        lines = shown(Seen(node=NODE, workloads={"job": ended}, serving=serving), width=width, height=24)
        assert any(re.search(r"job +exited \(again in 3\d\d\d s\)", line) for line in lines), lines


def test_nothing_that_a_terminal_would_obey() -> None:
    assert plain("a\x1b]0;title\x07b\r\n\u009b1m") == "a·]0;title·b··" + "·1m"
    view = workload("odd").model_copy(update={"argv": ["x", "\x1b[2J"]})
    lines = shown(Seen(node=NODE, workloads={"odd": view}), width=150, height=20)
    assert not any("\x1b[2J" in line for line in lines)


def test_one_that_is_gone_is_not_chosen_any_more() -> None:
    seen = Seen()
    for name in ("a", "b"):
        seen = with_message(seen, workload(name))
    seen = with_message(seen.choose(1), GoneView(workload="b"))
    assert (seen.names, seen.chosen) == (["a"], "a")
    assert with_message(seen, GoneView(workload="a")).chosen is None


@pytest.mark.parametrize(
    ("sent", "keys"),
    [
        (b"p", ["p"]),
        (b"\x1b[A\x1b[B\x1bOA", ["up", "down", "up"]),
        (b"jq", ["j", "q"]),
        (b"\x1b[5~\x1b[6~", ["page up", "page down"]),
        (b"\x1b[1;5Cp", ["p"]),
        (b"\x1b", []),
        (b"\x1b[", []),
        (b"\xc3\xbcp", ["p"]),
    ],
)
def test_keys(sent: bytes, keys: list[str]) -> None:
    assert names(sent) == keys


class Terminal:
    """`kybernate top` on a pseudo-terminal."""

    def __init__(self, state: Path, *, columns: int, lines: int) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))
        self.before = termios.tcgetattr(self._ours)
        environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kybernate.cli", "top", "--state-dir", str(state)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**environment, "TERM": "xterm-256color"},
            start_new_session=True,
        )
        os.close(theirs)
        self.raw = b""

    def text(self) -> str:
        """All that was drawn so far, without colours and movements."""
        with contextlib.suppress(OSError):
            while select.select([self._ours], [], [], 0)[0]:
                if not (piece := os.read(self._ours, 65536)):
                    break
                self.raw += piece
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.raw.decode(errors="replace"))

    def press(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def settings(self) -> list[object]:
        return termios.tcgetattr(self._ours)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._ours)


@pytest.fixture(scope="module")
def agent() -> Iterator[AgentProcess]:
    yield from agent_process(settings=f"agent:\n  pool: {{size: {128 * MIB}}}\n", simulated_gpu=True)


@pytest.fixture
def terminal(agent: AgentProcess) -> Iterator[Terminal]:
    made = Terminal(agent.state.root, columns=130, lines=30)
    yield made
    made.close()


@pytest.mark.timeout(300)
def test_in_a_terminal(agent: AgentProcess, terminal: Terminal, eventually: Eventually) -> None:
    for i, name in enumerate(("alpha", "beta")):
        agent.run_cuda(name, bytes_=16 * MIB, seed=i + 1)
    eventually(lambda: agent.steps("alpha") > 1 and agent.steps("beta") > 1)
    eventually(
        lambda: all(re.search(rf"\b{name} +running", terminal.text()) for name in ("alpha", "beta")),
        timeout_s=30,
        what="the workloads are drawn: their rows, not only the events that name them",
    )
    assert "(simulated)" in terminal.text()
    terminal.press(b"\x1b[H\x1b[B")
    terminal.press(b"p")
    eventually(lambda: agent.client.workload("beta").state is WorkloadState.PAUSED, timeout_s=30)
    eventually(lambda: "beta: paused in" in terminal.text(), timeout_s=30)
    terminal.press(b"r")
    eventually(lambda: agent.client.workload("beta").state is WorkloadState.RUNNING, timeout_s=30)
    eventually(lambda: "beta: resumed in" in terminal.text(), timeout_s=30)
    terminal.press(b"f")
    eventually(lambda: "prefetch" in terminal.text().rpartition("beta: resumed in")[2], timeout_s=30, what="the answer")
    assert agent.client.workload("alpha").state is WorkloadState.RUNNING
    terminal.press(b"q")
    assert terminal.process.wait(60) == 0
    assert terminal.text().rstrip().count("Traceback") == 0
    assert b"\x1b[?1049l" in terminal.raw, "the screen of before is back"
    agent.stop_all()


@pytest.mark.timeout(300)
def test_ctrl_c_leaves_the_terminal_as_it_was(terminal: Terminal, eventually: Eventually) -> None:
    eventually(lambda: "quit" in terminal.text(), timeout_s=30)
    eventually(lambda: terminal.settings()[3] != terminal.before[3], what="single keys are read")
    os.killpg(terminal.process.pid, signal.SIGINT)
    assert terminal.process.wait(60) == 130
    assert terminal.settings()[3] == terminal.before[3]
    terminal.text()
    assert b"\x1b[?1049l" in terminal.raw
