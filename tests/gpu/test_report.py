"""What people read is made from what was measured: bench/report.py over results made up here."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from kybernate.benchmarks import results
from kybernate.benchmarks.results import Baseline, Case


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
    content = results.document(name, cases, simulated=simulated)
    results.write(report.RESULTS / f"{name}.json", {**content, **more})


def test_median_and_schema() -> None:
    case = Case(case="c", unit="s", samples=(3.0, 1.0, 2.0), baseline=Baseline(name="b", value=9.0, n=2), floor=0.5)
    assert case.as_json() == {
        "case": "c", "unit": "s", "value": 2.0, "n": 3, "min": 1.0, "max": 3.0,
        "baseline": {"name": "b", "value": 9.0, "n": 2}, "floor": 0.5,
    }  # fmt: skip


def test_document_has_the_facts_of_the_host() -> None:
    content = results.document("x", [], simulated=True)
    assert content["host"].keys() >= {"gpu", "driver", "cuda", "kernel", "cpu", "ram_gib"}
    assert content["host"]["gpu"] == "simulated"


def test_nothing_measured_changes_nothing(report: ModuleType) -> None:
    before = (report.TOP / "README.md").read_text()
    assert report.readme() == before
    assert report.benchmarks_page() is None
    assert report.compatibility_page() is None


def test_simulated_results_are_not_shown(report: ModuleType) -> None:
    write(report, "pause", [Case(case="pause.zero.dirty.40GiB", unit="s", samples=(1.0,))], simulated=True)
    assert report.readme() == (report.TOP / "README.md").read_text()
    assert report.benchmarks_page() is None


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
    assert "| pause, everything changed | 1.20 s (driver alone 24.0 s) |" in section
    told = "1 of 3 targets is missed: resume of 40 GiB (1.5 s, target 1.1 s)."
    assert told in report.readme()
    assert told in section
    assert report.readme().startswith("# Title\n<!-- results:begin -->\n|  | Kybernate | compared with |")
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
    assert "| process of 40GiB, local disk | 23.0 s out, 21.0 s back |" in page
    assert "| speed of the store on the disk | 93% writing, 70% reading (fio: 100%) |" in page
    assert "| first answer of a clone of a 10GiB model server | 1.50 s (cold start 15.5 s) |" in page
    assert "S3" not in page, "what was not measured isn't mentioned"
    readme = " ".join(report.readme().split())
    assert (
        "2 of 5 targets are missed: disk read speed (70% of fio, target 85%) and "
        "memory the agent needs for 100 GiB of snapshots (300 MiB, target 200 MiB)."
    ) in readme
    assert "local disk" not in readme, "README has the one table only"


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
    page = report.benchmarks_page()
    assert page is not None
    assert "- All of 1200 answers equal those of the same server running alone." in page
    assert "| in VRAM | 0.02 s | 0.5 s |" in page
    assert "| in RAM, on an idle node | 1 s (llama-swap 8 s) | |" in page
    assert "| on the disk |" not in page, "what was not measured isn't mentioned"
    assert "- It adds 0.2 ms to a request (3 ms at the 99th percentile)." in page
    assert "- It passes 1.50x the requests per second of llama-swap." in page
    assert "1 of 5 targets is missed: p99 latency added per request (3 ms, target 2 ms)." in page
    assert "2 **missed**" in page
    assert "| `ttft.parked_ram.p50.vs_start_stop` | 0.125 |  | 1 | llama-swap 8 s |  |" in page


def test_a_wrong_answer_is_not_hidden(report: ModuleType) -> None:
    cases = [
        Case(case="answers_equal_ratio", unit="ratio", samples=(0.999,), notes={"of": 1000}),
        Case(case="training_exact", unit="", samples=(0.0,)),
    ]
    write(report, "multiplex", cases)
    page = report.benchmarks_page()
    assert "99.90% of 1000 answers" in page
    assert "**not** exact" in page
    readme = " ".join(report.readme().split())
    assert "2 of 2 targets are missed: answers equal to those of the server alone (99.90%, target 100%)" in readme
    assert "exact result of the training job (0, target 1)" in readme


def test_readme_has_one_table_of_four_numbers_beside_what_they_are_compared_with(report: ModuleType) -> None:
    driver = Baseline(name="driver checkpoint", value=20.0, n=2)
    names = ("pause.zero.dirty.1GiB", "pause.zero.dirty.40GiB", "resume.zero.40GiB", "swap.zero.40GiB")
    write(report, "pause", [Case(case=name, unit="s", samples=(1.0,), baseline=driver) for name in names])
    swap = Baseline(name="llama-swap", value=6.0, n=5)
    write(report, "multiplex", [Case(case="ttft.parked_ram.alone_s", unit="s", samples=(0.95,), baseline=swap)])
    readme = report.readme()
    rows = [line for line in readme.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 4
    assert (
        "| pause 40 GiB of GPU memory, all of it changed | 1.00 s | 20.0 s (the CUDA driver's own checkpoint) |" in rows
    )
    assert rows[3].endswith("| 0.95 s | 6.0 s (llama-swap, which starts the server again) |")
    assert "All 3 targets are met." in readme
    assert "(docs/benchmarks.md)" in readme


def test_every_target_has_words_of_its_own(report: ModuleType) -> None:
    targets = sys.modules["report_targets"]
    assert targets.WORDS.keys() == targets.BARS.keys() | targets.FLOORS.keys()
    assert len(set(targets.WORDS.values())) == len(targets.WORDS)
    assert report.BARS is targets.BARS


def test_long_sentences_are_wrapped_and_tables_are_not(report: ModuleType) -> None:
    row = {
        "program": "plain", "what": "C++ " * 60, "verdict": "passes", "expected": ["passes"], "reason": "",
        "cycles": 1, "steps": 1, "pause_zero_s": 0.5, "resume_zero_s": 0.25, "bytes_total": 1, "bytes_copied": 1,
        "bytes_native": 0,
    }  # fmt: skip
    write(report, "compatibility", [], programs=[row])
    long = [line for line in report.compatibility_page().splitlines() if len(line) > 120]
    assert len(long) == 1
    assert long[0].startswith("| C++")
