"""Stage of bench/tiers.py: a gold image of an inference server: clones' first answers against its cold start, in one run.

    cold start      process start, imports, weights from a file in the page cache, first answer; without anything of ours
    clone           the order until the first answer: right after the image was taken, again and again, and once from the disk
    four at once    until all four have answered
    snapshots       what a second one writes of the unchanged server, and one after it answered some requests

Every answer is compared with those the original gave. Clones are asked through their own networks.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from tiers_plan import Plan, Recorder, file_system, fitting, program_environment, ram_disk, scratch, size_name

from kybernate.benchmarks.agent import OwnAgent
from kybernate.benchmarks.conversation import until
from kybernate.benchmarks.pause import helper_environment
from kybernate.benchmarks.results import Baseline, Case
from kybernate.model import api
from kybernate.model.errors import KybernateError
from kybernate.model.types import CHUNK_BYTES, MIB, TierName
from kybernate.process.networks import open_socket
from kybernate.process.tree import Tree

NAME, IMAGE = "server", "gold"
PORT = 8000
TOKENS = 8
PROMPTS = (1, 2, 3)
START_S = 180.0
PROGRAMS = Path(__file__).resolve().parent / "programs"
Answers = dict[int, list[int]]


def gold(plan: Plan, recorder: Recorder) -> None:
    """See the module."""
    with contextlib.ExitStack() as held:
        place = held.enter_context(scratch(plan.directory, "gold"))
        wanted = plan.model_bytes
        in_ram = fitting(3 * wanted, plan.directory) < 3 * wanted
        weights = held.enter_context(ram_disk(plan.directory, "weights", wanted + wanted // 4)) if in_ram else place
        recorder.note(
            f"gold: image in {plan.directory} ({file_system(plan.directory)}), weights in {'RAM' if in_ram else 'it, too'}"
        )
        if fitting(wanted * 3 // 2, plan.directory) < wanted * 3 // 2:
            raise KybernateError(f"{plan.directory} has no room for an image of {size_name(wanted)}")
        _Gold(plan, recorder, place, weights / "model").run(held)


class _Gold:
    def __init__(self, plan: Plan, recorder: Recorder, place: Path, weights: Path) -> None:
        self._plan = plan
        self._recorder = recorder
        self._place = place
        self._weights = weights
        self._size = size_name(plan.model_bytes)
        script = PROGRAMS / ("words_server.py" if plan.simulated else "llama_server.py")
        self._program = [sys.executable if plan.simulated else plan.python, str(script)]
        self._answers: Answers = {}

    def run(self, held: contextlib.ExitStack) -> None:
        plan, recorder = self._plan, self._recorder
        # Room for the server's own copy, the image's, and what clones change.
        pool = max(64 * MIB, 3 * plan.model_bytes // CHUNK_BYTES * CHUNK_BYTES)
        store = {"directory": str(self._place / "store")}
        agent = held.enter_context(
            OwnAgent(pool_bytes=pool, simulated_bytes=plan.simulated_bytes, settings={"store": store})
        )
        recorder.say(f"agent ready, pool {size_name(pool)}")
        environment = helper_environment(agent) | program_environment(plan)
        made = subprocess.run(
            [*self._program, "make", str(self._weights), str(plan.model_bytes)],
            env=environment, capture_output=True, text=True, timeout=START_S, check=False,
        )  # fmt: skip
        if made.returncode:
            raise KybernateError(f"the model could not be made: {made.stderr.strip()[-600:]}")
        recorder.note(f"model: {made.stdout.split('bytes=')[-1].strip()} bytes of weights")
        cold = self._cold_starts(environment)
        self._start(agent)
        self._image(agent)
        self._clones(agent, cold)
        self._four(agent)
        self._from_disk(agent)

    # -- cold --------------------------------------------------------------------------------------------------------

    def _cold_starts(self, environment: dict[str, str]) -> list[float]:
        """The first one warms the page cache and isn't counted."""
        found: list[float] = []
        for turn in range(self._plan.cold_rounds + 1):
            with self._cold_start(environment) as (seconds, answers):
                if not turn:
                    self._answers = answers
                    continue
                self._compare("a cold start", answers)
                found.append(seconds)
            self._recorder.seconds(f"cold_start.first_answer.{self._size}", found)
        return found

    @contextlib.contextmanager
    def _cold_start(self, environment: dict[str, str]) -> Iterator[tuple[float, Answers]]:
        port = _free_port()
        log = self._place / "cold.log"
        began = time.monotonic()
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [*self._program, "serve", str(self._weights), str(port)],
                env=environment, stdout=sink, stderr=sink, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        try:
            first = until(
                lambda: self._first_answer(process, port, log),
                timeout_s=START_S,
                what="the first answer of a cold start",
            )
            seconds = time.monotonic() - began
            rest = {prompt: _ask(lambda: _host_connection(port), prompt) for prompt in PROMPTS[1:]}
            yield seconds, {PROMPTS[0]: first, **rest}
        finally:
            process.kill()
            process.wait()

    @staticmethod
    def _first_answer(process: subprocess.Popen[bytes], port: int, log: Path) -> list[int] | None:
        if process.poll() is not None:
            raise KybernateError(f"the server ended at its start: {log.read_text(errors='replace')[-600:]}")
        with contextlib.suppress(ConnectionError):
            return _ask(lambda: _host_connection(port), PROMPTS[0])
        return None

    # -- the original and its images ---------------------------------------------------------------------------------

    def _start(self, agent: OwnAgent) -> None:
        command = [*self._program, "serve", str(self._weights), str(PORT)]
        output = agent.run(NAME, command, environment=program_environment(self._plan))
        output.wait("ready", timeout_s=START_S)
        self._compare("the server under Kybernate", _answers(agent.tree(NAME)))

    def _image(self, agent: OwnAgent) -> None:
        first = self._snapshot(agent, IMAGE, ready=f"{PORT}/health")
        self._recorder.seconds(f"snapshot.{self._size}", [first.seconds], bytes_stored=first.bytes_stored)
        second = self._snapshot(agent, "second")
        self._ratio("second_snapshot.bytes_ratio", second)
        self._compare("the server after two snapshots", _answers(agent.tree(NAME)))
        third = self._snapshot(agent, "third")
        self._ratio("second_snapshot.after_requests.bytes_ratio", third)
        for name in ("second", "third"):
            agent.client.remove_snapshot(name)
        agent.client.collect(tier=TierName.NVME)

    @staticmethod
    def _snapshot(agent: OwnAgent, image: str, *, ready: str | None = None) -> api.StoredView:
        return agent.client.snapshot(NAME, api.SnapshotRequest(image=image, tier=TierName.NVME, ready=ready))

    def _ratio(self, name: str, view: api.StoredView) -> None:
        notes = {"bytes_total": view.bytes_total, "bytes_stored": view.bytes_stored, "seconds": round(view.seconds, 3)}
        self._recorder.case(Case(name, "ratio", (view.bytes_stored / view.bytes_total,), notes=notes))

    # -- clones ------------------------------------------------------------------------------------------------------

    def _clones(self, agent: OwnAgent, cold: Sequence[float]) -> None:
        self._recorder.note("clones: `first` is the first one ever; `from_disk` one of an agent that was started anew")
        found: list[float] = []
        baseline = Baseline("cold start", median(cold), len(cold))
        for turn in range(self._plan.clone_rounds + 1):
            seconds, notes = self._clone(agent, f"clone-{turn}")
            if not turn:
                self._recorder.case(
                    Case(f"clone.first_answer.first.{self._size}", "s", (seconds,), baseline=baseline, notes=notes)
                )
                continue
            found.append(seconds)
            self._recorder.case(
                Case(f"clone.first_answer.{self._size}", "s", tuple(found), baseline=baseline, notes=notes)
            )
            ratios = tuple(each / baseline.value for each in found)
            self._recorder.case(
                Case("clone.vs_cold_ratio", "ratio", ratios, baseline=Baseline("cold start", 1.0, len(cold)))
            )

    def _clone(self, agent: OwnAgent, name: str) -> tuple[float, dict[str, Any]]:
        """Seconds to its first answer, and where they went; it is gone afterwards."""
        began = time.monotonic()
        made = agent.client.clone(IMAGE, name)
        returned = time.monotonic() - began
        _ask_one(agent.tree(name), PROMPTS[0])
        seconds = time.monotonic() - began
        notes = {"steps": _clone_steps(agent, name, made, returned)}
        self._compare(name, _answers(agent.tree(name)))
        agent.client.stop(name, grace_s=0, remove=True)
        return seconds, notes

    def _from_disk(self, agent: OwnAgent) -> None:
        """With nothing of the image in RAM."""
        agent.kill()
        agent.start()
        seconds, notes = self._clone(agent, "from-disk")
        self._recorder.case(Case(f"clone.first_answer.from_disk.{self._size}", "s", (seconds,), notes=notes))

    def _four(self, agent: OwnAgent) -> None:
        free = _pool_free(agent)
        began = time.monotonic()
        made = agent.client.clone(IMAGE, "four", count=4)
        trees = [agent.tree(clone.workload) for clone in made.clones]
        with ThreadPoolExecutor(len(trees)) as threads:
            answered = list(threads.map(lambda tree: (_ask_one(tree, PROMPTS[0]), time.monotonic() - began), trees))
        if waiting := [clone for clone in made.clones if clone.state != "running"]:
            raise KybernateError(f"not all clones run: {waiting[0].note}")
        notes = {"each_s": sorted(round(seconds, 3) for _, seconds in answered)}
        self._recorder.seconds(f"clone.four_at_once.all_answered.{self._size}", [max(s for _, s in answered)], **notes)
        self._recorder.case(Case("clone.four_at_once.pool_added", "B", (max(0, free - _pool_free(agent)),)))
        for tree in trees:
            self._compare(str(tree.name), _answers(tree))
        for tree in trees:
            agent.client.stop(tree.name, grace_s=0, remove=True)

    def _compare(self, who: str, answers: Answers) -> None:
        if answers != self._answers:
            raise KybernateError(f"{who} answers {answers}, the first server {self._answers}")


def _clone_steps(agent: OwnAgent, name: str, made: api.CloneList, returned: float) -> dict[str, float]:
    """Where the time went, as far as it is told."""
    steps = {"order": round(returned, 3), "agent": round(made.seconds, 3)}
    resumed = agent.client.workload(name).last_resume
    if resumed is not None:
        steps |= {f"resume.{step.step}": round(step.seconds, 3) for step in resumed.steps} | {
            "resume": round(resumed.seconds, 3)
        }
    return steps


def _pool_free(agent: OwnAgent) -> int:
    pool = agent.client.node().pool
    return 0 if pool is None else pool.free_bytes


# -- asking --------------------------------------------------------------------------------------------------------------


class _Inside(http.client.HTTPConnection):
    """Through a socket of the workload's own network."""

    def __init__(self, tree: Tree) -> None:
        super().__init__("127.0.0.1", PORT, timeout=START_S)
        self._tree = tree

    def connect(self) -> None:
        self.sock = open_socket(self._tree)
        self.sock.settimeout(START_S)
        self.sock.connect((self.host, self.port))


def _host_connection(port: int) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", port, timeout=START_S)


def _ask(connect: Callable[[], http.client.HTTPConnection], prompt: int) -> list[int]:
    connection = connect()
    try:
        connection.request("GET", f"/generate?prompt={prompt}&tokens={TOKENS}")
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise KybernateError(f"the server answers {response.status}: {body[:200]!r}")
    finally:
        connection.close()
    tokens: list[int] = json.loads(body)["tokens"]
    return tokens


def _ask_one(tree: Tree, prompt: int) -> list[int]:
    return _ask(lambda: _Inside(tree), prompt)


def _answers(tree: Tree) -> Answers:
    return {prompt: _ask_one(tree, prompt) for prompt in PROMPTS}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
