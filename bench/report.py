"""Makes what people read from what was measured: `python bench/report.py` (or `--check` in CI).

    README.md                a short table between <!-- results:begin --> and <!-- results:end -->
    docs/benchmarks.md       whole: every case measured, with its spread, the link's limit and what is promised
    docs/compatibility.md    whole, from bench/results/compatibility.json

Only results of a real GPU are shown. A bar that was missed is shown as missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import report_serving

TOP = Path(__file__).resolve().parents[1]
RESULTS = TOP / "bench" / "results"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
GIB = 1 << 30
MIB = 1 << 20

BARS: dict[str, float] = {
    "pause.zero.dirty.40GiB": 1.6,
    "pause.zero.clean.40GiB": 0.75,
    "pause.warm.clean.40GiB": 0.06,
    "pause.warm.dirty.40GiB": 0.85,
    "resume.zero.40GiB": 1.1,
    "resume.warm.40GiB": 0.85,
    "swap.zero.40GiB": 1.7,
    "vram_after_zero_bytes": 0.0,
    "torch_small_ops_ratio": 1.01,
    "training_step_ratio": 1.01,
    "clone.first_answer.10GiB": 2.0,
    "second_snapshot.bytes_ratio": 0.02,
    "agent.memory_added.100GiB": 200.0 * MIB,
    "added.p50_ms": 0.5,
    "added.p99_ms": 2.0,
    "held_lost": 0.0,
    "restores.1000.lost": 0.0,
    "restores.1000.bytes_wrong": 0.0,
}
"""What is promised; at most."""
FLOORS: dict[str, float] = {
    "nvme.write.of_fio": 0.85,
    "nvme.read.of_fio": 0.85,
    "object.put.of_best_client": 0.80,
    "object.get.of_best_client": 0.80,
    "rps.vs_llama_swap": 1.0,
    **report_serving.FLOORS,
}
"""What is promised; at least."""


SHORT_SIZES = ("10GiB", "40GiB")
SHORT_CASES = {
    "pause.zero.dirty": "pause, all of it changed",
    "pause.zero.clean": "pause, nothing changed",
    "resume.zero": "resume",
    "swap.zero": "swap: one leaves, another comes",
}
SHORT_OVERHEAD = {
    "torch_small_ops_ratio": "PyTorch with small kernels",
    "training_step_ratio": "a PyTorch training step",
    "alloc_free_pair_ratio": "a bare cuMemAlloc and cuMemFree of 4 MiB, again and again",
    "alloc_free_pair_ratio.64MiB": "one of 64 MiB",
}
"""What the README shows, and in which words."""


def load(name: str) -> dict[str, Any] | None:
    """A result of a real GPU, or None."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return None
    content: dict[str, Any] = json.loads(path.read_text())
    return None if content.get("simulated") else content


def where(content: dict[str, Any]) -> str:
    host = content["host"]
    commit = f", commit {content['commit']}" if content["commit"] else ""
    gpu = f"{host['gpu']}, driver {host['driver']}, CUDA {host['cuda']}, " if host["gpu"] else ""
    return f"{gpu}Linux {host['kernel']}, {host['cpu']}, {content['date'][:10]}{commit}"


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    lines = ["| " + " | ".join(headings) + " |"]
    lines.append("|" + "|".join(" ---: " if k in right else " --- " for k in range(len(headings))) + "|")
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def bar(case: dict[str, Any]) -> str:
    name = case["case"]
    if name not in BARS and name not in FLOORS:
        return ""
    return f"{BARS.get(name, FLOORS.get(name, 0.0)):g}" + (" **missed**" if missed(case) else "")


def missed(case: dict[str, Any]) -> bool:
    """Whether a promise was not kept."""
    name, value = case["case"], case["value"]
    return value > BARS.get(name, value) or value < FLOORS.get(name, value)


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
        "promised, at most",
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
            ["time with the library / without it", "ratio", "from to", "promised, at most"], rows, right=range(1, 4)
        ),
        "",
        f"Taking turns in one run. {where(content)}.",
    ]


def short_speed_table(content: dict[str, Any]) -> list[str]:
    """One row for what a person does, a column for each size."""
    cases = {case["case"]: case for case in content["cases"]}
    sizes = [size for size in SHORT_SIZES if any(name.endswith(f".{size}") for name in cases)]
    rows = []
    for name, words in SHORT_CASES.items():
        found = [cases.get(f"{name}.{size}") for size in sizes]
        if any(found):
            rows.append([words, *(short_cell(case) for case in found)])
    return [*markdown(["", *sizes], rows, right=range(1, len(sizes) + 1)), "", f"{where(content)}."]


def short_cell(case: dict[str, Any] | None) -> str:
    if case is None:
        return ""
    baseline = case["baseline"]
    return f"{case['value']:.2f} s" + (f" (driver alone {baseline['value']:.1f} s)" if baseline else "")


def short_overhead(content: dict[str, Any]) -> list[str]:
    """In a sentence."""
    words = [
        f"{SHORT_OVERHEAD[case['case']]} {case['value']:.3g} times ({case['min']:.3g} to {case['max']:.3g})"
        for case in content["cases"]
        if case["case"] in SHORT_OVERHEAD
    ]
    return ["While it runs, in time against the same without the library: " + ", ".join(words) + "."] if words else []


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
        *markdown(["case", "Kybernate", "from to", "n", "against", "promised"], rows, right=range(1, 4)),
        "",
        *(f"- {note}" for note in content["notes"]),
        "",
        f"{where(content)}.",
    ]


def quantity(value: float, unit: str) -> str:
    if unit == "B":
        return size(int(value))
    return f"{value:.3f}" if unit == "ratio" else f"{value:.2f} {unit}"


def short_tiers(content: dict[str, Any]) -> list[str]:
    """In sentences, each as far as it was measured."""
    cases = {case["case"]: case for case in content["cases"]}
    parts = [*journeys(cases), *shares(cases)]
    for name, case in cases.items():
        what, _, much = name.rpartition(".")
        if what == "clone.first_answer" and case["baseline"]:
            took, cold = quantity(case["value"], "s"), case["baseline"]["value"]
            parts.append(
                f"a clone of a {much} inference server's image gives its first answer after {took} (cold start {cold:.1f} s)"
            )
    if second := cases.get("second_snapshot.bytes_ratio"):
        parts.append(f"a second snapshot of that server, unchanged, writes {second['value']:.1%} of its bytes")
    return ["Below RAM: " + "; ".join(parts) + f". {where(content)}."] if parts else []


def journeys(cases: dict[str, Any]) -> list[str]:
    """How long a process takes to a tier and back."""
    found = []
    for tier, words in (("nvme", "the local disk"), ("object", "an S3 server on the same host")):
        for name, out in cases.items():
            back = cases.get(name.replace(".pause.", ".resume."))
            if name.startswith(f"process.{tier}.pause.") and back is not None:
                much, there, here = name.rpartition(".")[2], out["value"], back["value"]
                found.append(f"a process of {much} goes to {words} in {there:.1f} s and comes back in {here:.1f} s")
    return found


def shares(cases: dict[str, Any]) -> list[str]:
    """How near the store comes to what does nothing but move bytes."""
    found = []
    for ways, words in (
        (("nvme.write.of_fio", "nvme.read.of_fio"), "of what fio gets from that disk, writing and reading"),
        (("object.put.of_best_client", "object.get.of_best_client"), "of the best S3 client, putting and getting"),
    ):
        if all(way in cases for way in ways):
            found.append(f"the store has {' and '.join(format(cases[way]['value'], '.0%') for way in ways)} {words}")
    return found


def serving_table(content: dict[str, Any]) -> list[str]:
    return [
        *markdown(
            ["case", "Kybernate", "from to", "of", "against", "promised"],
            report_serving.rows(content),
            right=range(1, 4),
        ),
        "",
        *(f"- {note}" for note in content["notes"]),
        "",
        f"{where(content)}.",
    ]


def short_serving() -> list[str]:
    """In sentences, each as far as it was measured."""
    lines: list[str] = []
    if (multiplex := load("multiplex")) and (words := report_serving.multiplexing(multiplex)):
        lines += [
            "Five model servers of 24 GiB on 60 GiB of VRAM, 1,000 requests by a trace, a training job beside them:",
            "",
        ]
        if table := report_serving.first_tokens(multiplex):
            lines += [*table, ""]
        lines += [f"{words[0].upper()}{words[1:]}. {where(multiplex)}.", ""]
    if (activator := load("activator")) and (words := report_serving.activating(activator)):
        lines += [f"The address in front of them {words}. {where(activator)}.", ""]
    return lines


def results_section() -> str:
    """What stands between the marks in README.md; the empty string when nothing was measured."""
    parts: list[str] = []
    if pause := load("pause"):
        parts += [*short_speed_table(pause), ""]
    if overhead := load("overhead"):
        parts += [*short_overhead(overhead), ""]
    if tiers := load("tiers"):
        parts += [*short_tiers(tiers), ""]
    parts += short_serving()
    known = ("pause", "overhead", "tiers", "snapshots", "multiplex", "activator")
    parts += promises([content for name in known if (content := load(name)) is not None])
    if compatibility := load("compatibility"):
        verdicts = [row["verdict"] for row in compatibility["programs"]]
        counts = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts))
        parts += [
            f"Programs paused and resumed under load: {counts}; see [docs/compatibility.md](docs/compatibility.md).",
            "",
        ]
    return "\n".join(parts).rstrip()


def promises(contents: Sequence[dict[str, Any]]) -> list[str]:
    """How many of the bars measured were met, and which were not."""
    cases = [case for content in contents for case in content["cases"] if case["case"] in BARS | FLOORS]
    if not cases:
        return []
    names = [f"`{case['case']}`" for case in cases if missed(case)]
    words = f"missed: {', '.join(names)}" if names else "all met"
    return [
        f"Of {len(cases)} promises {words}; every case with its spread is in [docs/benchmarks.md](docs/benchmarks.md).",
        "",
    ]


def digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


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
    headings = ["what", "value", "from to", "compared with", "promised"]
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
        "lost": "restores that failed, or whose program did",
        "bytes_wrong": "bytes that were others, missing or too many",
        "bytes_compared": "bytes compared",
    }
    rows = []
    for case in content["cases"]:
        restores, _, what = case["case"].removeprefix("restores.").partition(".")
        if what in names:
            value = size(int(case["value"])) if what == "bytes_compared" else digits(case["value"])
            rows.append([names[what], value, f"{int(restores):,} restores", bar(case)])
    return [
        *markdown(
            ["full connections over loopback and Unix sockets", "", "of", "promised, at most"], rows, right=(1, 3)
        ),
        "",
        f"{'; '.join(content['notes'])}. {where(content)}.",
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
        parts += ["## Restored to the last byte", "", *snapshots_table(snapshots), ""]
    if multiplex := load("multiplex"):
        parts += ["## Five models on one GPU", "", *serving_table(multiplex), ""]
    if activator := load("activator"):
        parts += ["## The activator", "", *activator_table(activator), ""]
    if not parts:
        return None
    return "\n".join(
        [
            "# Benchmarks",
            "",
            "<!-- Generated by bench/report.py from bench/results; changes here are lost. -->",
            "",
            "*zero*: nothing is left in VRAM. *warm*: the CUDA context stays. *dirty*: all of it changed since the last pause;",
            "*clean*: nothing did. *swap*: from the order to resume one until it runs, the other having left.",
            "",
            *parts,
            "Again, on a machine with a GPU: `kybernate bench pause`, `python bench/overhead.py`, `python bench/tiers.py`,",
            "`python bench/multiplex.py --results DIR`, `python bench/report.py`; on any machine: `python bench/activator.py`,",
            "`python bench/snapshots.py`.",
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
    section = results_section()
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
    return "\n".join(
        [
            "# Compatibility",
            "",
            "<!-- Generated by bench/report.py from bench/results/compatibility.json; changes here are lost. -->",
            "",
            "Each program works under load and compares its whole result with a closed formula in every step, while it is paused",
            "and resumed again and again (every third time warm, else to zero). *passes*: every word was exact to the end.",
            "*slower because native*: exact too, but most of its memory is not in extents and goes by the driver's own",
            "checkpoint. *refused*: the pause is refused before anything is touched, and the program works on, exact.",
            "",
            *markdown(headings, rows, right=range(2, 9)),
            "",
            "Pause and resume in seconds and bytes are medians over the zero pauses, with other programs of this table running",
            "beside. *native* is what the driver lists for the processes, less the extents: context, modules, small allocations.",
            "",
            f"Measured on {where(content)}. Again: `python tests/gpu/compatibility.py && python bench/report.py`.",
            "",
        ]
    )


def size(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f} GiB" if size_bytes >= GIB else f"{size_bytes / MIB:.0f} MiB"


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
