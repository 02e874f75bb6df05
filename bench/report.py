"""Makes what people read from what was measured: `python bench/report.py` (or `--check` in CI).

    README.md                the table between <!-- results:begin --> and <!-- results:end -->
    docs/benchmarks.md       whole: a summary, then every case with its spread, the link's limit and its target
    docs/compatibility.md    whole, from bench/results/compatibility.json

Only results of a real GPU are shown. A target that was missed is shown as missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import report_serving
import report_summary
from report_targets import BARS, FLOORS, WORDS, bar, missed
from report_text import digits, markdown, quantity, size, where, wrapped

TOP = Path(__file__).resolve().parents[1]
RESULTS = TOP / "bench" / "results"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
NAMES = ("pause", "overhead", "tiers", "snapshots", "multiplex", "activator", "compatibility")


def load(name: str) -> dict[str, Any] | None:
    """A result of a real GPU, or None."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return None
    content: dict[str, Any] = json.loads(path.read_text())
    return None if content.get("simulated") else content


def results() -> dict[str, dict[str, Any]]:
    """All that was measured on a real GPU, by the benchmark's name."""
    return {name: content for name in NAMES if (content := load(name)) is not None}


def speed_table(content: dict[str, Any]) -> list[str]:
    rows = []
    for case in content["cases"]:
        if case["case"].startswith(("stock.", "link.")):
            continue
        baseline, floor = case["baseline"], case["floor"]
        if case["unit"] == "s":
            rows.append(
                [
                    f"`{case['case']}`",
                    f"{case['value']:.3f} s",
                    f"{case['min']:.3f} to {case['max']:.3f}",
                    f"{baseline['value']:.2f} s" if baseline else "",
                    f"{baseline['value'] / case['value']:.0f}x" if baseline else "",
                    f"{floor:.3f} s" if floor else "",
                    f"{bar(case)} s".replace(" **missed** s", " s **missed**") if bar(case) else "",
                ]
            )
        elif case["case"] == "vram_after_zero_bytes":
            rows.append([f"`{case['case']}`", f"{case['value']:.0f} bytes", "", "", "", "", bar(case)])
    headings = [
        "case",
        "Kybernate",
        "from to",
        "driver's own checkpoint",
        "faster",
        "link's limit",
        "target, at most",
    ]
    counts = sorted(
        {case["n"] for case in content["cases"] if case["unit"] == "s" and not case["case"].startswith("stock.")}
    )
    links = [
        f"{case['case'].removeprefix('link.')} {case['value']:.1f} GiB/s"
        for case in content["cases"]
        if case["case"].startswith("link.")
    ]
    repetitions = f"Medians of {' or '.join(map(str, counts))} repetitions" if counts else "Medians"
    return [
        *markdown(headings, rows, right=range(1, 7)),
        "",
        f"{repetitions}, every word compared after each; the link measured in the same run: {', '.join(links)}. {where(content)}.",
    ]


def overhead_table(content: dict[str, Any]) -> list[str]:
    names = {
        "torch_small_ops_ratio": "PyTorch, 200,000 x `a.add_(1)` on 64x64",
        "training_step_ratio": "PyTorch, training step of a small network",
        "alloc_free_pair_ratio": "10,000 pairs of cuMemAlloc and cuMemFree of 4 MiB",
        "alloc_free_pair_ratio.64MiB": "1,000 pairs of cuMemAlloc and cuMemFree of 64 MiB, which the library keeps none of",
    }
    rows = [
        [
            names.get(case["case"], case["case"]),
            f"{case['value']:.4f}",
            f"{case['min']:.4f} to {case['max']:.4f}",
            bar(case),
        ]
        for case in content["cases"]
    ]
    return [
        *markdown(
            ["time with the library / without it", "ratio", "from to", "target, at most"], rows, right=range(1, 4)
        ),
        "",
        f"Taking turns in one run. {where(content)}.",
    ]


def tiers_table(content: dict[str, Any]) -> list[str]:
    rows = []
    for case in content["cases"]:
        baseline, promised = case["baseline"], bar(case)
        if promised:
            promised = f"at {'least' if case['case'] in FLOORS else 'most'} {promised}"
            if case["unit"] == "B":
                promised = f"at most {size(int(BARS[case['case']]))}" + (" **missed**" if missed(case) else "")
        rows.append(
            [
                f"`{case['case']}`",
                quantity(case["value"], case["unit"]),
                f"{quantity(case['min'], case['unit'])} to {quantity(case['max'], case['unit'])}"
                if case["n"] > 1
                else "",
                str(case["n"]),
                baseline["name"] + (f", {quantity(baseline['value'], 's')}" if case["unit"] == "s" else "")
                if baseline
                else "",
                promised,
            ]
        )
    return [
        *markdown(["case", "Kybernate", "from to", "n", "against", "target"], rows, right=range(1, 4)),
        "",
        *(f"- {note}" for note in content["notes"]),
        "",
        f"{where(content)}.",
    ]


def serving_table(content: dict[str, Any]) -> list[str]:
    return [
        *markdown(
            ["case", "Kybernate", "from to", "of", "against", "target"],
            report_serving.rows(content),
            right=range(1, 4),
        ),
        "",
        *(f"- {note}" for note in content["notes"]),
        "",
        f"{where(content)}.",
    ]


def activator_table(content: dict[str, Any]) -> list[str]:
    names = {
        "added.p50_ms": "latency added, median",
        "added.p99_ms": "latency added, 99th percentile",
        "rps.vs_llama_swap": "requests a second / llama-swap's, worst count of connections",
        "rps.vs_direct": "requests a second / without anything between, worst count of connections",
        "added_per_token_us": "time added to each streamed token",
        "held_lost": "requests lost of 10,000 held",
        "held_bytes_each": "memory for each of them",
    }
    rows = []
    for case in content["cases"]:
        if case["case"] in names or case["case"].startswith(("rps.kybernate", "tokens_per_s.kybernate")):
            baseline = case["baseline"]
            rows.append(
                [
                    names.get(case["case"], f"`{case['case']}`"),
                    f"{digits(case['value'])} {case['unit'].replace('ratio', '')}".rstrip(),
                    f"{digits(case['min'])} to {digits(case['max'])}",
                    f"{baseline['name']} {digits(baseline['value'])}" if baseline else "",
                    bar(case),
                ]
            )
    host = content["host"]
    headings = ["what", "value", "from to", "compared with", "target"]
    return [
        *markdown(headings, rows, right=range(1, 5)),
        "",
        (
            f"{'; '.join(content['notes'])}. {host['cpu']}, {host['cores']} cores, Linux {host['kernel']}, "
            f"{content['date'][:10]}, commit {content['commit']}."
        ),
    ]


def snapshots_table(content: dict[str, Any]) -> list[str]:
    names = {
        "lost": "restores that failed, or whose program failed",
        "bytes_wrong": "wrong, missing or additional bytes",
        "bytes_compared": "bytes compared",
    }
    rows = []
    for case in content["cases"]:
        restores, _, what = case["case"].removeprefix("restores.").partition(".")
        if what in names:
            value = size(int(case["value"])) if what == "bytes_compared" else digits(case["value"])
            rows.append([names[what], value, f"{int(restores):,} restores", bar(case)])
    return [
        *markdown(["full connections over loopback and Unix sockets", "", "of", "target, at most"], rows, right=(1, 3)),
        "",
        f"{'; '.join(content['notes'])}. {where(content)}.",
    ]


def memory_table(content: dict[str, Any]) -> list[str]:
    """Empty where it wasn't measured."""
    cases = [case for case in content["cases"] if case["case"].startswith("host_memory.")]
    if not cases:
        return []
    rows = []
    for case in cases:
        value = size(int(case["value"])) if case["unit"] == "B" else digits(case["value"])
        rows.append([WORDS.get(case["case"], case["case"]), value, bar(case)])
    return [
        "",
        *markdown(["host memory, to a local disk and back", "", "target"], rows, right=(1, 2)),
        "",
        f"{'; '.join(content['host_memory']['notes'])}. {where(content['host_memory'])}.",
    ]


def benchmarks_page() -> str | None:
    """docs/benchmarks.md as it should be; None when nothing was measured."""
    parts: list[str] = []
    if pause := load("pause"):
        parts += ["## Pause and resume", "", *speed_table(pause), ""]
    if overhead := load("overhead"):
        parts += ["## What it costs while a workload runs", "", *overhead_table(overhead), ""]
    if tiers := load("tiers"):
        parts += ["## Below RAM, and images", "", *tiers_table(tiers), ""]
    if snapshots := load("snapshots"):
        parts += ["## Restored to the last byte", "", *snapshots_table(snapshots), *memory_table(snapshots), ""]
    if multiplex := load("multiplex"):
        parts += ["## Five models on one GPU", "", *serving_table(multiplex), ""]
    if activator := load("activator"):
        parts += ["## The activator", "", *activator_table(activator), ""]
    if not parts:
        return None
    return wrapped(
        [
            "# Benchmarks",
            "",
            "<!-- Generated by bench/report.py from bench/results; changes here are lost. -->",
            "",
            "| word | meaning |",
            "| --- | --- |",
            "| zero | the workload leaves nothing in VRAM |",
            "| warm | the CUDA context (about 0.5 GB) stays in VRAM |",
            "| dirty | all of the memory has changed since the last pause |",
            "| clean | nothing has changed since the last pause (an idle model server), so nothing is copied |",
            "| swap | time from `resume` of one workload until it runs; the other one leaves meanwhile |",
            "| driver alone | the CUDA driver's own checkpoint of the same process, in the same run |",
            "",
            *report_summary.page(results()),
            *parts,
            "## Measure again",
            "",
            "On a machine with a GPU:",
            "",
            "    kybernate bench pause",
            "    python bench/overhead.py",
            "    python bench/tiers.py",
            "    python bench/multiplex.py --results DIR",
            "    python bench/report.py",
            "",
            "On any machine:",
            "",
            "    python bench/activator.py",
            "    python bench/snapshots.py",
            "    python bench/snapshots_memory.py",
            "",
        ]
    )


def readme() -> str:
    """README.md as it should be. Raises SystemExit when it has no marks."""
    text = (TOP / "README.md").read_text()
    if BEGIN not in text or END not in text:
        raise SystemExit(f"README.md has no {BEGIN} ... {END}")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    section = wrapped(report_summary.readme(results()))
    return f"{head}{BEGIN}\n{section}\n{END}{tail}" if section else text


def compatibility_page() -> str | None:
    """docs/compatibility.md as it should be; None when nothing was measured."""
    content = load("compatibility")
    if content is None:
        return None
    rows = []
    for row in content["programs"]:
        pause, resume = row["pause_zero_s"], row["resume_zero_s"]
        rows.append(
            [
                row["what"],
                row["verdict"] if row["verdict"] in row["expected"] else f"**{row['verdict']}**",
                str(row["cycles"]) if row["cycles"] else "",
                f"{row['steps']:,}" if row["steps"] else "",
                f"{pause:.2f}" if pause is not None else "",
                f"{resume:.2f}" if resume is not None else "",
                size(row["bytes_total"]) if row["cycles"] else "",
                size(row["bytes_copied"]) if row["cycles"] else "",
                size(row["bytes_native"]) if row["bytes_native"] else "",
                row["reason"].replace("|", "/").replace("\n", " "),
            ]
        )
    headings = ["program", "verdict", "cycles", "steps", "pause s", "resume s", "in extents", "copied", "native", "why"]
    return wrapped(
        [
            "# Compatibility",
            "",
            "<!-- Generated by bench/report.py from bench/results/compatibility.json; changes here are lost. -->",
            "",
            "Each program runs under load and compares its whole result with a closed formula in every step. Meanwhile it is",
            "paused and resumed many times: every third pause is warm, the others are to zero.",
            "",
            "| verdict | meaning |",
            "| --- | --- |",
            "| passes | every word was exact to the end |",
            "| slower because native | exact, too, but the driver's own checkpoint moves most of its memory |",
            "| refused | the pause is refused before anything is touched; the program runs on and stays exact |",
            "",
            *markdown(headings, rows, right=range(2, 9)),
            "",
            "Seconds and bytes are medians over the pauses to zero. Other programs of this table ran at the same time.",
            "*native* is the memory that Kybernate does not manage: context, modules, small allocations.",
            "",
            f"Measured on {where(content)}. Again: `python tests/gpu/compatibility.py && python bench/report.py`.",
            "",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 when something is out of date")
    options = parser.parse_args()
    wanted = {TOP / "README.md": readme()}
    for name, page in (("benchmarks", benchmarks_page()), ("compatibility", compatibility_page())):
        if page is not None:
            wanted[TOP / "docs" / f"{name}.md"] = page
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        print(f"{'out of date' if options.check else 'written'}: {path.relative_to(TOP)}")
        if not options.check:
            path.write_text(wanted[path])
    return 1 if stale and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
