"""Everything that the kernel knows of a program is there after a restore, or was named before: a row of docs/snapshots.md each."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import Eventually
from tests.process.conftest import Workloads

from kybernate.model.errors import BadInput, Unsupported
from kybernate.model.types import WorkloadName
from kybernate.process import changes, images, kernel_setting, kernel_state
from kybernate.process.dumping import dump
from kybernate.process.kernel_state import DescriptorState, KernelState, ThreadState, TimerState
from kybernate.process.preflight import refusals, would_change
from kybernate.process.restoring import RestoreReport, restore
from kybernate.process.tree import CONTROL, Tree

from .dumps import output, wait_ready
from .kernel_rows import HEAD, ROWS, TAIL, Fate, Row

DOCUMENT = Path(__file__).parents[2] / "docs/snapshots.md"
root = pytest.mark.root
RowProgram = Callable[[Row], Tree]


@pytest.fixture
def row_program(workloads: Workloads, eventually: Eventually) -> RowProgram:
    def start(row: Row) -> Tree:
        tree = workloads.python(HEAD + TAIL, row.setup, row.look)
        eventually(lambda: "ready" in output(tree) or tree.exit() is not None)
        if tree.exit_status() == 77:
            pytest.skip(output(tree).strip())
        wait_ready(tree, eventually)
        return tree

    return start


def in_another_life(tree: Tree, images_directory: Path, workloads: Workloads) -> RestoreReport:
    tree.remove()
    report = restore(images_directory, name=WorkloadName("work"), run_directory=tree.run_directory)
    workloads.trees.append(report.tree)
    return report


def before_and_after(tree: Tree) -> list[object]:
    (tree.run_directory / CONTROL / "go").touch()
    assert tree.wait(30) == 0, output(tree)
    found: list[object] = json.loads(output(tree).splitlines()[-1])
    return found


@root
@pytest.mark.parametrize("row", [pytest.param(row, id=row.id) for row in ROWS])
def test_kept_after_restore(row: Row, row_program: RowProgram, workloads: Workloads, tmp_path: Path) -> None:
    tree = row_program(row)
    if row.fate is Fate.REFUSED:
        assert any(row.words in line for line in refusals(would_change(tree)))
        with pytest.raises(Unsupported) as refusal:
            dump(tree, tmp_path / "images", hold=True)
        assert row.words in str(refusal.value)
        assert not tree.frozen, "nothing was touched"
    notes = dump(tree, tmp_path / "images", hold=True, allow_changes=row.fate is Fate.REFUSED).notes
    named = row.fate in (Fate.REFUSED, Fate.NOTED)
    assert any(row.words in note for note in notes) is named, notes
    report = in_another_life(tree, tmp_path / "images", workloads)
    assert report.notes == ()
    before, after = before_and_after(report.tree)
    assert (before == after) is not named, f"{before} became {after}"


def test_each_row_is_in_the_documentation() -> None:
    text = DOCUMENT.read_text()
    assert not [row.name for row in ROWS if row.name.partition(" of a ")[0].lower() not in text.lower()]


@root
def test_what_cannot_be_set_again_is_told(row_program: RowProgram, workloads: Workloads, tmp_path: Path) -> None:
    """A dump from a machine with other processors, in which a descriptor was closed, too."""
    tree = row_program(next(row for row in ROWS if row.name == "affinity"))
    dump(tree, tmp_path / "images", hold=True)
    there = max(os.sched_getaffinity(0))
    main = kernel_state.read(tmp_path / "images").threads[1000]
    assert main.processors == (there,)
    state = KernelState(
        threads={1000: ThreadState(processors=(there, 4000)), 1001: ThreadState(processors=(4000,))},
        descriptors=(DescriptorState(1000, 999, options={"TCP_SYNCNT": 3}),),
    )
    _replace(tmp_path / "images", state)
    report = in_another_life(tree, tmp_path / "images", workloads)
    told = "\n".join(report.notes)
    assert "thread 1000: it may run on fewer processors than before: 4000 can't be used here" in told
    assert "thread 1001: it ran on processors 4000" in told
    assert "process 1000, descriptor 999: can't be reached" in told


@root
def test_a_dump_of_an_earlier_version_has_nothing_to_set(
    row_program: RowProgram, workloads: Workloads, tmp_path: Path
) -> None:
    tree = row_program(next(row for row in ROWS if row.name == "affinity"))
    dump(tree, tmp_path / "images", hold=True)
    _replace(tmp_path / "images", None)
    assert in_another_life(tree, tmp_path / "images", workloads).notes == ()


@root
def test_a_damaged_record_is_refused_before_anything_is_done(
    row_program: RowProgram, workloads: Workloads, tmp_path: Path
) -> None:
    tree = row_program(next(row for row in ROWS if row.name == "affinity"))
    dump(tree, tmp_path / "images", hold=True)
    path = tmp_path / "images" / kernel_state.RECORD
    path.write_text(path.read_text().replace('"version": 1', '"version": 9'))
    with pytest.raises(BadInput, match="version 9"):
        in_another_life(tree, tmp_path / "images", workloads)


def test_what_makes_no_sense_is_told(tmp_path: Path) -> None:
    own = os.getpid()
    kernel_state.write(tmp_path, KernelState(threads={own: ThreadState(processors=(-1,))}))
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        kernel_setting.run(directory, directory)
    finally:
        os.close(directory)
    assert len(kernel_setting.notes(tmp_path)) == 1
    path = tmp_path / kernel_state.RECORD
    for content in ("[" * 100_000, path.read_text().replace("-1", "1e999")):
        path.write_text(content)
        with pytest.raises(BadInput, match="damaged"):
            kernel_state.read(tmp_path)


def _replace(directory: Path, state: KernelState | None) -> None:
    """The record of a dump, so that it is whole as before."""
    (directory / kernel_state.RECORD).unlink()
    if state is not None:
        kernel_state.write(directory, state)
    record = json.loads((directory / images.RECORD).read_text())
    record["files"] = images.sizes(directory)
    (directory / images.RECORD).write_text(json.dumps(record))


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    state = KernelState(
        threads={5: ThreadState(processors=(0, 3), io_priority=16389), 6: ThreadState(timer_slack_ns=1, slice_ns=2)},
        core_dump_filters={5: 0x7F},
        descriptors=(
            DescriptorState(5, 3, options={"TCP_CONGESTION": "reno", "TCP_USER_TIMEOUT": 12345}),
            DescriptorState(5, 4, timer=TimerState(10**18, 0, 1, 2)),
            DescriptorState(5, 5, epoll="4000000008000100"),
        ),
    )
    kernel_state.write(tmp_path, state)
    assert kernel_state.read(tmp_path) == state
    assert (tmp_path / kernel_state.RECORD).stat().st_mode & 0o777 == 0o600


def test_only_what_differs_is_recorded() -> None:
    common = ThreadState(processors=(0, 1), io_priority=0, timer_slack_ns=50_000, slice_ns=2_800_000)
    own = ThreadState(processors=(1,), io_priority=0, timer_slack_ns=1, slice_ns=2_800_000)
    assert own.beside(common) == ThreadState(processors=(1,), timer_slack_ns=1)
    assert common.beside(common) == ThreadState()


SMAPS = """\
00400000-00401000 r-xp 00000000 08:01 42                                 /bin/a program
Size:                  4 kB
VmFlags: rd ex mr mw me {text}
7f0000000000-7f0000010000 rw-p 00000000 00:00 0
VmFlags: rd wr mr mw me ac {memory}
7fff00000000-7fff00021000 rw-p 00000000 00:00 0                          [stack]
VmFlags: rd wr mr mw me gd ac
7fff10000000-7fff10002000 r-xp 00000000 00:00 0                          [vdso]
VmFlags: rd ex mr mw me de sl
"""


@pytest.mark.parametrize(
    ("text", "memory", "words"),
    [
        ("", "", []),
        ("", "lo", []),
        ("lo", "lo", ["mlockall"]),
        ("", "sl", ["mseal"]),
        ("", "lo lf", ["MLOCK_ONFAULT"]),
    ],
)
def test_mappings_are_judged(text: str, memory: str, words: list[str]) -> None:
    found = list(changes.of_mappings(changes.parse_smaps(SMAPS.format(text=text, memory=memory))))
    assert len(found) == len(words)
    assert all(word in change.text for change, word in zip(found, words, strict=True))


def test_a_numa_policy_matters_where_there_is_a_choice() -> None:
    assert not list(changes.of_memory_policy({"default", "local"}, common=set(), nodes=2))
    assert not list(changes.of_memory_policy({"bind:0"}, common={"bind:0"}, nodes=2))
    assert [change.serious for change in changes.of_memory_policy({"bind:0"}, common=set(), nodes=2)] == [True]
    assert [change.serious for change in changes.of_memory_policy({"bind:0"}, common=set(), nodes=1)] == [False]


@pytest.mark.parametrize(
    ("own", "common", "landlock", "named"),
    [("1", "0", True, True), ("1", "0", False, False), ("1", "1", True, False), ("0", "0", True, False)],
)
def test_who_may_have_confined_itself_by_landlock_is_named(own: str, common: str, landlock: bool, named: bool) -> None:
    found = list(changes.of_status({"NoNewPrivs": own}, common={"NoNewPrivs": common}, landlock=landlock))
    assert any("Landlock" in change.text for change in found) is named
