"""The programs that prove things on a GPU, proved themselves on the simulated driver: their logic, never a number.

Left out: the frameworks' programs (they need a GPU) and the faults (tests/engine/test_faults.py).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import files
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent / "programs"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "native" / "generate"))

import calls
from program import MASK, Sequence, signed

from kybernate.benchmarks.main import pause
from kybernate.cuda import simulated
from kybernate.demo.main import demo
from kybernate.model.types import MIB

pytestmark = pytest.mark.timeout(300)
TOP = Path(__file__).resolve().parents[2]


@pytest.fixture
def gpu_of_its_own(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Variables of a process that sees a simulated GPU and no agent."""
    gpu = simulated.make(tmp_path / "gpu", size_bytes=256 * MIB)
    yield simulated.environment([gpu], os.environ)
    simulated.remove(gpu.path)


def python(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False)


def test_sequence_is_the_formula_it_claims_to_be() -> None:
    sequence = Sequence.begin(5)
    words = [sequence.word(i) for i in range(100)]
    for _ in range(7):
        words = [(word * 1664525 + 1013904223) & MASK for word in words]
        sequence.advance()
    assert words == [sequence.word(i) for i in range(100)]
    assert sequence.total(100) == sum(words) & MASK
    assert signed(MASK) == -1


def test_demo(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo(requests=24, seconds=7.0, simulated="80MiB", json=True) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["requests"] == outcome["answered"] == outcome["exact"] == 24
    assert outcome["training_exact"]
    assert outcome["switches"] >= 4
    assert set(outcome["vram_s"]) == {"ada", "bob", "cem", "training"}


def test_demo_of_two_that_change_places(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo(swap=True, turns=2, simulated="128MiB", json=True) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["turn"] for row in result["turns"]] == [1, 2]
    assert all(row["bytes"] == result["setting"]["each"] for row in result["turns"])
    assert all(end.startswith("exact steps=") for end in result["ends"].values())


def test_multiplex_runner(tmp_path: Path) -> None:
    target = tmp_path / "multiplex.json"
    done = python(
        "bench/multiplex.py", "--simulated", "--results", tmp_path / "parts", "--output", target, "--models", "3",
        "--requests", "20", "--seconds", "5", "--every", "3", "--gap", "2", "--compared", "8", "--rounds", "2",
        "--steps", "100",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    cases = {case["case"]: case for case in json.loads(target.read_text())["cases"]}
    assert cases["answers_equal_ratio"]["value"] == cases["training_exact"]["value"] == 1
    assert cases["answers_equal_ratio"]["of"] >= 20 + 8 + 2 + 1
    assert {
        "ttft.parked_ram.p50_s", "ttft.parked_ram.p99_s", "ttft.parked_nvme.p50_s", "ttft.parked_nvme.p99_s",
        "ttft.warm.p50_s", "ttft.warm.p99_s", "ttft.parked_ram.p50.vs_start_stop", "wait.mean.vs_fifo",
    } <= set(cases)  # fmt: skip


def test_bench_pause_writes_the_fixed_names(tmp_path: Path) -> None:
    target = tmp_path / "pause.json"
    assert pause(sizes="32MiB,64MiB", repeat=2, stock_repeat=1, simulated="512MiB", output=target, json=True) == 0
    result = json.loads(target.read_text())
    assert result["simulated"]
    cases = {case["case"]: case for case in result["cases"]}
    for size in ("32MiB", "64MiB"):
        for depth in ("zero", "warm"):
            assert {f"pause.{depth}.dirty.{size}", f"pause.{depth}.clean.{size}", f"resume.{depth}.{size}"} <= set(
                cases
            )
        assert cases[f"pause.zero.dirty.{size}"]["n"] == 2
        assert cases[f"resume.zero.{size}"]["n"] == 4
        assert cases[f"pause.zero.dirty.{size}"]["baseline"]["name"] == "driver checkpoint"
        assert cases[f"pause.zero.clean.{size}"]["steps"]["bytes_copied"] == 0
    assert cases["swap.zero.64MiB"]["n"] == 2
    assert cases["vram_after_zero_bytes"]["value"] == 0


def test_compatibility_runner(tmp_path: Path) -> None:
    target = tmp_path / "compatibility.json"
    done = python(
        "tests/gpu/compatibility.py", "--simulated", "512MiB", "--pool", "256MiB", "--cycles", "6",
        "--parallel", "2", "--output", target,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["program"]: row for row in json.loads(target.read_text())["programs"]}
    assert {name: row["verdict"] for name, row in rows.items()} == {
        "words": "passes",
        "words-too": "passes",
        "managed-words": "refused",
        "pointer-questions": "passes",
    }
    assert rows["words"]["cycles"] == 6
    assert "managed" in rows["managed-words"]["reason"]


def test_overhead_runner(tmp_path: Path) -> None:
    target = tmp_path / "overhead.json"
    done = python(
        "bench/overhead.py", "--simulated", "256MiB", "--kinds", "alloc,alloc-large", "--scale", "0.01", "--rounds", "3",
        "--output", target,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    kept, large = json.loads(target.read_text())["cases"]
    assert (kept["case"], large["case"]) == ("alloc_free_pair_ratio", "alloc_free_pair_ratio.64MiB")
    assert kept["n"] == large["n"] == 3
    assert kept["value"] < 1, "a kept allocation asks nobody, not even the driver"


def tiers(directory: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """bench/tiers.py with little of everything; its words and its result."""
    small = ("--rounds", "1", "--cold", "1", "--clones", "1", "--turn-size", "16MiB")
    results = directory / "results"
    done = python("bench/tiers.py", *small, "--directory", directory, "--results", results, *arguments)
    return done, json.loads((results / "tiers.json").read_text())


@pytest.mark.root
def test_tiers_runner(tmp_path: Path) -> None:
    done, result = tiers(
        tmp_path, "--simulated", "256MiB", "--stages", "gold,process-nvme,snapshots", "--process-size", "16MiB"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert result["simulated"]
    cases = {case["case"]: case for case in result["cases"]}
    assert cases.keys() >= {
        "clone.first_answer.first.16MiB", "clone.first_answer.16MiB", "clone.first_answer.from_disk.16MiB",
        "clone.vs_cold_ratio",
        "clone.four_at_once.all_answered.16MiB", "second_snapshot.bytes_ratio", "process.nvme.pause.16MiB",
        "process.nvme.resume.16MiB", "process.nvme.demotion_ram.16MiB", "agent.memory_added.256MiB",
    }  # fmt: skip
    assert cases["clone.four_at_once.pool_added"]["value"] == 0, "clones share what none of them has changed"
    assert list(tmp_path.iterdir()) == [tmp_path / "results"], "nothing is left on the disk"


@pytest.mark.root
def test_tiers_runner_tells_of_a_stage_that_fails_and_goes_on(tmp_path: Path) -> None:
    done, result = tiers(tmp_path, "--simulated", "64MiB", "--stages", "object,nvme", "--bucket", "/proc")
    assert done.returncode == 1
    assert any(note.startswith("object failed: ") for note in result["notes"])
    assert "nvme.write.of_fio" in {case["case"] for case in result["cases"]}
    other = {**result, "cases": [{**result["cases"][0], "case": "other"}], "notes": ["said elsewhere"]}
    (tmp_path / "other.json").write_text(json.dumps(other))
    done, both = tiers(tmp_path, "--merge", str(tmp_path / "results" / "tiers.json"), str(tmp_path / "other.json"))
    assert done.returncode == 0, done.stderr
    assert [case["case"] for case in both["cases"]] == [*(case["case"] for case in result["cases"]), "other"]
    older = {**other, "commit": "another", "date": "2020-01-01T00:00:00+00:00"}
    (tmp_path / "other.json").write_text(json.dumps({**older, "cases": [{**other["cases"][0], "case": "old"}]}))
    done, both = tiers(tmp_path, "--merge", str(tmp_path / "results" / "tiers.json"), str(tmp_path / "other.json"))
    assert {case["case"]: case.get("commit") for case in both["cases"]}["old"] == "another"
    assert both["commit"] == result["commit"]
    assert "of commit another, 2020-01-01: old" in both["notes"]
    (tmp_path / "other.json").write_text(json.dumps({**older, "host": {**older["host"], "gpu": "another"}}))
    done, _ = tiers(tmp_path, "--merge", str(tmp_path / "results" / "tiers.json"), str(tmp_path / "other.json"))
    assert "is of another machine" in done.stderr


def test_questions_about_memory_are_answered_under_pauses_as_without(tmp_path: Path) -> None:
    """Twenty pauses, warm and zero; threads ask every call that the next test names, all the time."""
    target = tmp_path / "compatibility.json"
    done = python(
        "tests/gpu/compatibility.py", "--simulated", "512MiB", "--pool", "256MiB", "--cycles", "20",
        "--programs", "pointer-questions", "--output", target,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    [row] = json.loads(target.read_text())["programs"]
    assert (row["verdict"], row["cycles"]) == ("passes", 20)


NOT_ASKED = {
    "cuInit": "no memory",
    "cuGetProcAddress": "no memory",
    "cuMemAllocManaged": "refused: no pause while it lives",
    "cuMemExportToShareableHandle": "refused",
    "cuMemImportFromShareableHandle": "refused",
    "cuIpcGetMemHandle": "refused",
    "cuIpcOpenMemHandle": "refused",
    "cuIpcCloseMemHandle": "refused",
    "cuCtxCreate": "no address; a context is made for each process anyway",
    "cuCtxDestroy": "likewise",
    "cuCtxEnablePeerAccess": "no peers in the simulated driver",
    "cuDevicePrimaryCtxRelease": "takes all memory along",
    "cuDevicePrimaryCtxReset": "likewise",
    "cuStreamBeginCapture": "no address; a pause waits for the end of a capture",
    "cuStreamEndCapture": "likewise",
    "cuStreamDestroy": "likewise",
}


def test_every_call_about_memory_is_asked(gpu_of_its_own: dict[str, str]) -> None:
    """By the table of native/generate: questions, calls written by hand, and what passes no gate though it has an address."""
    wanted = set(calls.ASK) | set(calls.CUSTOM) | set(calls.FREE_WITH_ADDRESS)
    exported = re.findall(r"VARIANT\((\w+),", (TOP / "native/simulated/functions.inc").read_text())
    program = TOP / "tests/gpu/programs/pointer_questions.py"
    command = [sys.executable, str(program), "--list"]
    said = subprocess.run(command, env=gpu_of_its_own, capture_output=True, text=True, check=True).stdout
    asked = {calls.base_of(name) for name in said.split()}
    assert wanted & set(exported) - asked == set(NOT_ASKED)


def test_the_list_of_calls_is_that_of_the_header() -> None:
    """What a newer CUDA brings needs a decision, and waits at a gate until there is one."""
    [header] = [file for file in files("nvidia-cuda-runtime") or () if file.name == "cuda.h"]
    assert calls.generate(Path(header.locate())) == (TOP / "native/preload/generated/calls.inc").read_text()


@pytest.mark.parametrize(
    "name", ["cuMemcpyFromTheFuture", "cuGraphicsMapResources", "cuDeviceGraphMemTrim", "cuCtxSetLimit"]
)
def test_what_may_touch_memory_is_not_free(name: str) -> None:
    assert not calls.is_free(name)
