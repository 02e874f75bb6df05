"""What people read is made from what was measured: bench/report.py over results made up here."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from kybernate.cli import bench_results
from kybernate.cli.bench_results import Baseline, Case


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with a directory of its own instead of the repository."""
    path = Path(__file__).resolve().parents[2] / "bench" / "report.py"
    monkeypatch.syspath_prepend(path.parent)
    spec = importlib.util.spec_from_file_location("report", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "TOP", tmp_path)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "bench" / "results")
    (tmp_path / "README.md").write_text("# Title\n<!-- results:begin -->\nold\n<!-- results:end -->\nrest\n")
    (tmp_path / "docs").mkdir()
    return module


def write(report: ModuleType, name: str, cases: list[Case], *, simulated: bool = False, **more: object) -> None:
    content = bench_results.document(name, cases, simulated=simulated)
    bench_results.write(report.RESULTS / f"{name}.json", {**content, **more})


def test_median_and_schema() -> None:
    case = Case(case="c", unit="s", samples=(3.0, 1.0, 2.0), baseline=Baseline(name="b", value=9.0, n=2), floor=0.5)
    assert case.as_json() == {
        "case": "c", "unit": "s", "value": 2.0, "n": 3, "min": 1.0, "max": 3.0,
        "baseline": {"name": "b", "value": 9.0, "n": 2}, "floor": 0.5,
    }  # fmt: skip


def test_document_has_the_facts_of_the_host() -> None:
    content = bench_results.document("x", [], simulated=True)
    assert content["host"].keys() >= {"gpu", "driver", "cuda", "kernel", "cpu", "ram_gib"}
    assert content["host"]["gpu"] == "simulated"


def test_nothing_measured_changes_nothing(report: ModuleType) -> None:
    before = (report.TOP / "README.md").read_text()
    assert report.readme() == before
    assert report.benchmarks_page() is None
    assert report.compatibility_page() is None


def test_simulated_results_are_not_shown(report: ModuleType) -> None:
    write(report, "pause", [Case(case="pause.zero.dirty.40GiB", unit="s", samples=(1.0,))], simulated=True)
    assert report.results_section() == ""


def test_missed_bars_are_shown_as_missed(report: ModuleType) -> None:
    stock = Baseline(name="driver checkpoint", value=24.0, n=2)
    write(
        report,
        "pause",
        [
            Case(case="pause.zero.dirty.40GiB", unit="s", samples=(1.2,), baseline=stock, floor=0.78),
            Case(case="resume.zero.40GiB", unit="s", samples=(1.5,)),
            Case(case="vram_after_zero_bytes", unit="B", samples=(0.0,)),
            Case(case="link.out", unit="GiB/s", samples=(51.5,)),
        ],
    )
    section = report.benchmarks_page()
    assert "| `pause.zero.dirty.40GiB` | 1.200 s | 1.200 to 1.200 | 24.00 s | 20x | 0.780 s | 1.6 s |" in section
    assert "1.1 s **missed**" in section
    assert "out 51.5 GiB/s" in section
    assert (report.TOP / "README.md").read_text().count("old") == 1
    assert "| pause, all of it changed | 1.20 s (driver alone 24.0 s) |" in report.readme()
    assert "Of 3 promises missed: `resume.zero.40GiB`" in report.readme()
    assert report.readme().startswith("# Title\n<!-- results:begin -->\n|  | 40GiB |")
    assert report.readme().endswith("<!-- results:end -->\nrest\n")


def test_tiers(report: ModuleType) -> None:
    cold = Baseline(name="cold start", value=15.5, n=3)
    write(
        report,
        "tiers",
        [
            Case(case="nvme.write.of_fio", unit="ratio", samples=(0.93,), baseline=Baseline("fio libaio", 1.0, 1)),
            Case(case="nvme.read.of_fio", unit="ratio", samples=(0.7,), baseline=Baseline("threads", 1.0, 1)),
            Case(case="process.nvme.pause.40GiB", unit="s", samples=(23.0,)),
            Case(case="process.nvme.resume.40GiB", unit="s", samples=(21.0,)),
            Case(case="clone.first_answer.first.10GiB", unit="s", samples=(7.0,), baseline=cold),
            Case(case="clone.first_answer.10GiB", unit="s", samples=(1.5, 1.25, 2.5), baseline=cold),
            Case(case="second_snapshot.bytes_ratio", unit="ratio", samples=(0.01,)),
            Case(case="agent.memory_added.100GiB", unit="B", samples=(300 << 20,)),
        ],
    )
    page = report.benchmarks_page()
    assert "| `nvme.write.of_fio` | 0.930 |  | 1 | fio libaio | at least 0.85 |" in page
    assert "| `nvme.read.of_fio` | 0.700 |  | 1 | threads | at least 0.85 **missed** |" in page
    assert "| `clone.first_answer.10GiB` | 1.50 s | 1.25 s to 2.50 s | 3 | cold start, 15.50 s | at most 2 |" in page
    assert "| `agent.memory_added.100GiB` | 300 MiB |  | 1 |  | at most 200 MiB **missed** |" in page
    readme = report.readme()
    assert "a process of 40GiB goes to the local disk in 23.0 s and comes back in 21.0 s" in readme
    assert "the store has 93% and 70% of what fio gets" in readme
    assert "first answer after 1.50 s (cold start 15.5 s)" in readme
    assert "S3" not in readme, "what was not measured isn't mentioned"
    assert "Of 5 promises missed: `nvme.read.of_fio`, `agent.memory_added.100GiB`" in readme


def test_compatibility_page(report: ModuleType) -> None:
    row = {
        "program": "plain", "what": "C++", "verdict": "passes", "expected": ["passes"], "reason": "", "cycles": 100,
        "steps": 12345, "pause_zero_s": 0.5, "resume_zero_s": 0.25, "bytes_total": 1 << 30, "bytes_copied": 5 << 20,
        "bytes_native": 0,
    }  # fmt: skip
    failed = {**row, "what": "bad", "verdict": "failed", "reason": "a | b"}
    write(report, "compatibility", [], programs=[row, failed])
    page = report.compatibility_page()
    assert "| C++ | passes | 100 | 12,345 | 0.50 | 0.25 | 1.0 GiB | 5 MiB |  |  |" in page
    assert "**failed**" in page
    assert "a / b" in page


def test_serving(report: ModuleType) -> None:
    ratio = Baseline(name="llama-swap", value=8.0, n=6)
    cases = [
        Case(case="answers_equal_ratio", unit="ratio", samples=(1.0,), notes={"of": 1200}),
        Case(case="training_exact", unit="", samples=(1.0,)),
        Case(case="ttft.warm.p50_s", unit="s", samples=(0.02,), notes={"of": 600}),
        Case(case="ttft.warm.p99_s", unit="s", samples=(0.5,), notes={"of": 600}),
        Case(case="ttft.parked_ram.p50.vs_start_stop", unit="ratio", samples=(0.125,), baseline=ratio),
    ]
    write(report, "multiplex", cases)
    activator = [
        Case(case="added.p50_ms", unit="ms", samples=(0.2,)),
        Case(case="added.p99_ms", unit="ms", samples=(3.0,)),
        Case(case="rps.vs_llama_swap", unit="ratio", samples=(1.5,)),
    ]
    write(report, "activator", activator)
    section = report.results_section()
    assert "All of 1200 answers are those of the server alone" in section
    assert "| in VRAM | 0.02 s | 0.5 s |" in section
    assert "| in RAM, nothing else going on | 1 s (llama-swap 8 s) | |" in section
    assert "| on the disk |" not in section, "what was not measured isn't mentioned"
    assert "adds 0.2 ms to a request (3 ms at the 99th percentile); passes 1.50 times" in section
    assert "Of 5 promises missed: `added.p99_ms`" in section
    page = report.benchmarks_page()
    assert page is not None
    assert "2 **missed**" in page
    assert "| `ttft.parked_ram.p50.vs_start_stop` | 0.125 |  | 1 | llama-swap 8 s |  |" in page


def test_a_wrong_answer_is_not_hidden(report: ModuleType) -> None:
    cases = [
        Case(case="answers_equal_ratio", unit="ratio", samples=(0.999,), notes={"of": 1000}),
        Case(case="training_exact", unit="", samples=(0.0,)),
    ]
    write(report, "multiplex", cases)
    section = report.results_section()
    assert "99.90% of 1000 answers" in section
    assert "**not** exact" in section
    assert "missed: `answers_equal_ratio`, `training_exact`" in section
